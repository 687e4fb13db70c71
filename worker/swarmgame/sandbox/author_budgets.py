"""Budgets: how much processor time a round spends on the answers of each other peer.

An answer below the deadline of a call may still take a second, and identities are free. So one author has a budget,
and all authors together have one, of which each gets an equal share of what is left. Authors that nobody vouches for
have no more together than `RemoteWork` gives them of a round.
"""

from __future__ import annotations

from collections import Counter

from swarmgame.game.remote_work import RemoteWork
from swarmgame.game.state import PeerId
from swarmgame.sandbox.client import Budget

TOTAL = 4
"""The budget of all authors together, in budgets of one."""
DEADLINES = 8
"""The budget of one author where none is configured, in deadlines of a call."""


class AuthorBudgets:
    """What is left of the budgets of a round.

    Args:
        seconds: processor time for the answers of one author.
        work: bounds the authors that nobody vouches for; None: they are as all others.
    """

    def __init__(self, seconds: float, work: RemoteWork | None = None) -> None:
        self.seconds = seconds
        self.work = work
        self._round: int | None = None
        self._used: Counter[PeerId] = Counter()

    def begin(self, round_number: int) -> None:
        """Begin anew, where this is another round."""
        if round_number != self._round:
            self._round = round_number
            self._used.clear()

    def allow(self, author: PeerId, waiting: int) -> Budget:
        """Return the budget of an author's answers.

        Args:
            waiting: number of authors whose answers are still to be scored, this one included.
        """
        left = max(0.0, TOTAL * self.seconds - self._used.total())
        if self.work is not None and not self.is_vouched_for(author):
            together = self.work.scoring_seconds()
            used = sum(seconds for peer, seconds in self._used.items() if not self.is_vouched_for(peer))
            left = left if together is None else min(left, max(0.0, together - used))
        return Budget(max(0.0, min(self.seconds - self._used[author], left / waiting)))

    def is_vouched_for(self, author: PeerId) -> bool:
        """Return whether the manifest or the runner vouches for an author."""
        return self.work is None or self.work.is_vouched_for(author)

    def scored_own(self, seconds: float) -> None:
        """Note what this peer's own answers took."""
        if self.work is not None:
            self.work.scored_own(seconds)

    def spend(self, author: PeerId, seconds: float) -> None:
        """Note what an author's answers took."""
        self._used[author] += seconds  # type: ignore[assignment]  # a Counter counts fractions too
