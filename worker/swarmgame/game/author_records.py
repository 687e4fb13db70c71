"""Author records: what was measured of each other peer's rollouts, and whose groups are not used for some rounds.

The mean over tokens of p(ours) / p(claimed) is 1 for whoever sampled what it sent with the probabilities that it
claims, however different its policy is: it is the sum of p(theirs) p(ours) / p(theirs) over all tokens. A peer that
claims less than the truth, for a larger weight, has more. Each ratio is cut at 2, so that an honest mean is at most 1
with a deviation of 0.03 over 1,000 tokens, and that groups which are chosen because their rewards differ, and so hold
rare answers, do not raise it much: of an answer that most rollouts of a group have, a sender is surer than we are.
A mean near 0 is that of claims far above the truth, or of a policy with nothing in common with ours. Pure state, part
of the checkpoint.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from swarmgame.game.state import PeerId

LARGEST_RATIO = 2.0
"""A token's ratio is cut here."""
LEAST_TOKENS = 1000
"""No verdict over fewer tokens."""
BAND = 0.05, 1.5
"""Means that an honest peer has."""
DOUBTFUL_ROUNDS = 10
DOUBT = "the log-probabilities that it claims do not fit its rollouts"
MAX_AUTHORS = 1024
"""Most authors with a record; those of whom nothing was used for longest are forgotten first."""


@dataclass(frozen=True, slots=True)
class RemoteUse:
    """How one update used the rollouts of another peer.

    Args:
        influence: share of the update: of the sum of absolute advantage times weight, over tokens (or over rollouts,
            where the loss is a mean over rollouts).
        tokens: with claims that can be compared with our own policy.
        ratios: sum over these tokens of p(ours) / p(claimed), each at most `LARGEST_RATIO`.
        refused: rollouts that got no weight, by outcome.
    """

    influence: float = 0.0
    tokens: int = 0
    ratios: float = 0.0
    refused: Mapping[str, int] = field(default_factory=dict)


@dataclass(slots=True)
class _Record:
    tokens: float = 0.0
    ratios: float = 0.0
    doubtful_until: int = 0


class AuthorRecords:
    """Records of authors, by peer id."""

    def __init__(self) -> None:
        self._records: dict[PeerId, _Record] = {}

    def record(self, round: int, uses: Mapping[PeerId, RemoteUse]) -> frozenset[PeerId]:
        """Add what an update measured, and return the authors that it has made doubtful."""
        found = set()
        for peer, use in sorted(uses.items()):
            record = self._records.pop(peer, None) or _Record()
            self._records[peer] = record  # the last place: forgotten last
            record.tokens += use.tokens
            record.ratios += use.ratios
            if record.tokens < LEAST_TOKENS:
                continue
            low, high = BAND
            if not low <= record.ratios / record.tokens <= high:
                record.doubtful_until = round + 1 + DOUBTFUL_ROUNDS
                record.tokens = record.ratios = 0.0
                found.add(peer)
            else:  # what is older counts less and less
                record.tokens, record.ratios = record.tokens / 2, record.ratios / 2
        while len(self._records) > MAX_AUTHORS:
            del self._records[next(iter(self._records))]
        return frozenset(found)

    def doubtful(self, round: int) -> frozenset[PeerId]:
        """Return the authors whose groups are not used in a round."""
        return frozenset(peer for peer, record in self._records.items() if round < record.doubtful_until)

    def state_dict(self) -> Mapping[str, Any]:
        return {
            "authors": [
                [peer, record.tokens, record.ratios, record.doubtful_until] for peer, record in self._records.items()
            ]
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._records = {peer: _Record(*rest) for peer, *rest in state["authors"]}
