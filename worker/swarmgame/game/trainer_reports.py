"""What a trainer reports beside its metrics: how it used each rollout, and what a person should know."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple


class RolloutUse(NamedTuple):
    """How an update used one rollout.

    Args:
        advantage: the factor of its log-probabilities in the loss; NaN for a rollout that was not scored.
        weight: factor of the advantage: 1 for a rollout of the policy itself, the mean importance weight of its tokens
            for one of another policy, 0 for one that the update left out.
    """

    advantage: float
    weight: float


@dataclass(frozen=True, slots=True)
class Notice:
    """What a person should know about a policy, and what to do.

    Args:
        code: of the warning, a name in `docs/reference/warnings.md`.
        text: what was found, a sentence without a full stop; the same each time.
        count: how often so far.
    """

    code: str
    text: str
    count: int = 1
