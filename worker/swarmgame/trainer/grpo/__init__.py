"""The GRPO family for causal language models: losses, advantages, training batches, and the trainer."""
