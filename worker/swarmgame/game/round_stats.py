"""Round statistics: totals of the round in progress, for its report."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

from swarmgame.game.author_records import RemoteUse
from swarmgame.game.protocol import Collected
from swarmgame.game.state import GroupKey, PeerId
from swarmgame.game.verification import VerifiedRollouts


@dataclass
class RoundStats:
    """Totals of one round.

    Args:
        clock: in seconds.
        seconds: by phase.
        outcomes: messages, groups and rollouts by outcome.
        refused: of these, by author, those of which an author's groups or rollouts were not trained on.
        influence: share of the update by author.
        trainable: groups that may be selected.
        last: what the last stage collected.
    """

    clock: Callable[[], float]
    seconds: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))
    outcomes: Counter[str] = field(default_factory=Counter)
    refused: defaultdict[PeerId, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    influence: dict[PeerId, float] = field(default_factory=dict)
    bytes_sent: int = 0
    bytes_received: int = 0
    trainable: set[GroupKey] = field(default_factory=set)
    last: Collected | None = None

    def add_stage(self, collected: Collected, verified: VerifiedRollouts) -> None:
        self.outcomes.update(collected.outcomes)
        self.outcomes.update(verified.outcomes)
        for contribution, reasons in zip(collected.contributions, verified.reasons, strict=True):
            self.refused[contribution.peer].update(reasons.values())
        self.seconds["exchange"] += collected.seconds
        self.bytes_sent += collected.bytes_sent
        self.bytes_received += collected.bytes_received
        self.trainable |= verified.trainable
        self.last = collected

    def leave_out(self, authors: frozenset[PeerId], *, paused: bool = False) -> None:
        """Leave out the groups of doubtful authors, and all groups while sharing is paused.

        Authors are counted once a round: in PULL mode nothing of them is fetched.
        """
        self.trainable = {key for key in self.trainable if key.peer not in authors}
        self.outcomes["doubtful-author"] += len(authors)
        for peer in authors:
            self.refused[peer]["doubtful-author"] += 1
        if paused:
            self.outcomes["sharing-paused"] += len(self.trainable)
            self.trainable.clear()

    def add_update(self, uses: Mapping[PeerId, RemoteUse]) -> None:
        for peer, use in uses.items():
            self.influence[peer] = use.influence
            self.refused[peer].update(use.refused)
            self.outcomes.update(use.refused)

    def refused_by_author(self) -> dict[PeerId, dict[str, int]]:
        """Return the counts by author, sorted, without authors of whom everything was used."""
        found = {
            peer: {name: count for name, count in sorted(each.items()) if count} for peer, each in self.refused.items()
        }
        return {peer: counts for peer, counts in sorted(found.items()) if counts}

    @contextmanager
    def timed(self, phase: str) -> Iterator[None]:
        """Add the time that a block takes to a phase."""
        began = self.clock()
        yield
        self.seconds[phase] += self.clock() - began
