"""Stage times: how long the stages of a game usually take, and how long a stage waits for peers without an anchor.

Pure; seconds come from the caller. A stage begins when the one before it has closed, so that its time includes our own
work. It is over when two thirds of the counted weight have delivered: a minority that becomes slower and slower cannot
raise it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from statistics import median
from typing import Any

from swarmgame.game.state import PeerId

KNOWN = 3
"""Rounds after which the usual time is known."""
WINDOW = 9
FACTOR, SLACK_SECONDS = 1.5, 0.2
_TWO_THIRDS = 0.66


@dataclass(frozen=True, slots=True)
class StageTimes:
    """The last times of each stage, in seconds."""

    seconds: Mapping[int, tuple[float, ...]] = field(default_factory=dict)

    def add(self, stage: int, seconds: float) -> StageTimes:
        """Add the time of a stage."""
        times = (*self.seconds.get(stage, ()), seconds)[-WINDOW:]
        return replace(self, seconds={**self.seconds, stage: times})

    def state_dict(self) -> Mapping[str, Any]:
        """Return the times by stage, for a checkpoint."""
        return {str(stage): list(times) for stage, times in self.seconds.items()}

    @classmethod
    def restored(cls, state: Mapping[str, Any]) -> StageTimes:
        """Return the times of a checkpoint."""
        return cls({int(stage): tuple(times) for stage, times in state.items()})

    def usual(self, stage: int, work: float) -> float | None:
        """Return how many seconds a stage usually takes; None while fewer than `KNOWN` times are known.

        Args:
            work: seconds until our own contribution: where it took long, as with an evaluation, those of others may.
        """
        times = self.seconds.get(stage, ())
        return max(median(times), work) if len(times) >= KNOWN else None


def patience(usual: float) -> float:
    """Return for how many seconds from its beginning a stage waits for peers without an anchor."""
    return FACTOR * usual + SLACK_SECONDS


def reached(arrivals: Mapping[PeerId, float], weights: Mapping[PeerId, float], own: float, closed: float) -> float:
    """Return when two thirds of the counted weight, ours included, had delivered.

    Args:
        arrivals: when each contribution was complete.
        weights: of the other peers that count.
        own: when our own contribution was complete.
        closed: when the stage closed, which is returned where it closed before that.
    """
    needed = _TWO_THIRDS * (1 + sum(weights.values()))
    delivered = 1.0
    if delivered >= needed:
        return own
    for peer, when in sorted(arrivals.items(), key=lambda arrival: arrival[1]):
        delivered += weights.get(peer, 0.0)
        if delivered >= needed:
            return max(own, when)
    return closed
