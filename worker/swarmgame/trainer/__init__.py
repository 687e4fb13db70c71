"""Trainers: policies that generate and learn. The GRPO family for causal language models, and policy gradients for any torch module."""
