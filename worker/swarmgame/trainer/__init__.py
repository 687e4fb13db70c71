"""Trainers: policies that generate rollouts and train on them. The GRPO family for language models, policy gradient
for any torch module.
"""
