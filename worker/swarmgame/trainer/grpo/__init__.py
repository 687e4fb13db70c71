"""GRPO and its kin for causal language models: pure losses and advantages, a sampler, and the trainer that joins them."""
