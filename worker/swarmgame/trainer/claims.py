"""Claims of other peers: which log-probabilities no honest sender can have.

A sampled sequence of T tokens out of V has a log-probability below -(T log V + x) with a probability of at most e^-x:
there are V^T sequences. And the ratio of our probability to the sender's has a mean of at most 1 under the sender's
policy, so it exceeds e^x with a probability of at most e^-x (Markov). Claims beyond both would gain influence for a
sender that claims nonsense.
"""

from __future__ import annotations

import math

IMPOSSIBLE_NATS = 30.0
"""The chance of an honest rollout beyond it: 1e-13."""

IMPROBABLE_NATS = 16.0
"""The chance of an honest rollout beyond it: 1e-7."""


def is_possible(total: float, tokens: int, vocabulary: int) -> bool:
    """Return whether a rollout of that many tokens can have this log-probability in all."""
    return total >= -(tokens * math.log(vocabulary) + IMPOSSIBLE_NATS)
