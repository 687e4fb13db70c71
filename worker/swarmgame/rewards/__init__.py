"""Reward managers: how rollouts are scored."""
