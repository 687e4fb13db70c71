"""The learning rate as a pure function of the number of rounds in which this policy has trained.

It is the peer's own count, not the swarm's, so a peer that joins late also warms up.
"""

from __future__ import annotations

import math

from swarmgame.trainer.grpo.config import GRPOConfig


def learning_rate(config: GRPOConfig, rounds: int) -> float:
    """Return the rate for the round after `rounds` others.

    Linear warm-up to `config.learning_rate`, reached in the last round of the warm-up; then constant, or falling to
    zero at `total_rounds`.
    """
    if rounds < config.warmup_rounds:
        return config.learning_rate * (rounds + 1) / config.warmup_rounds
    if config.schedule == "constant" or config.total_rounds is None:
        return config.learning_rate
    progress = min(1.0, (rounds - config.warmup_rounds) / (config.total_rounds - config.warmup_rounds))
    if config.schedule == "linear":
        return config.learning_rate * (1 - progress)
    return config.learning_rate * 0.5 * (1 + math.cos(math.pi * progress))
