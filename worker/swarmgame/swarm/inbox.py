"""The mailbox: every announcement heard, and what has been fetched of it.

Pure state. It decides what a message is worth before anything is fetched for it: admitted, in the window of rounds,
said before, said otherwise. Invariants: the first announcement of a peer for a stage stands, whatever it signs later; a
contribution is handed out once; memory is bounded by members times rounds in the window.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from swarmgame.game.state import Contribution, PeerId
from swarmgame.swarm.messages import Announcement, ShardEntry

AHEAD = 2
"""How many rounds ahead of us a peer may be and still be heard; what is further ahead is asked for when we get there."""
MOST_PER_PEER = 256


@dataclass(slots=True)
class InboxEntry:
    """What one peer said in one stage, as far as we have it.

    Args:
        entries: its shards, once the index is here.
        parts: decoded shards by position.
        failed: why it cannot be used; empty while it can.
        taken: handed out, or passed over in a stage that has closed.
        opening: somebody is fetching it.
    """

    announcement: Announcement
    entries: tuple[ShardEntry, ...] | None = None
    parts: dict[int, Contribution] = field(default_factory=dict)
    failed: str = ""
    taken: bool = False
    opening: bool = False

    @property
    def whole(self) -> bool:
        return self.entries is not None and len(self.parts) == len(self.entries)


class Inbox:
    """Letters by round, stage and peer.

    Args:
        peer: ourselves.
        admission: whether a peer may take part.
        keep_rounds: how many rounds back a letter may be.
    """

    def __init__(self, peer: PeerId, admission: Callable[[PeerId], bool], keep_rounds: int) -> None:
        self.peer = peer
        self.admission = admission
        self.keep_rounds = keep_rounds
        self.round: int | None = None
        self.outcomes: Counter[str] = Counter()
        self._stages: dict[tuple[int, int], dict[PeerId, InboxEntry]] = {}
        self._closed: set[tuple[int, int]] = set()
        self._count: Counter[PeerId] = Counter()

    def hear(self, announcement: Announcement, now: float) -> tuple[InboxEntry, bool] | None:
        """Takes an announcement in.

        Returns:
            The letter, and whether it is new; None when the announcement is refused (and counted).
        """
        peer, stage = announcement.peer, (announcement.round, announcement.stage)
        if peer == self.peer:
            return None
        if not self.admission(peer):
            self.outcomes["not-admitted"] += 1
            return None
        if announcement.expires <= now:
            self.outcomes["stale"] += 1
            return None
        known = self._stages.get(stage, {}).get(peer)
        if known is not None:
            if known.announcement.root != announcement.root:
                self.outcomes["equivocation"] += 1
                return None
            self.outcomes["duplicate"] += 1
            return known, False
        if self.round is not None:
            if announcement.round < self.round - self.keep_rounds:
                self.outcomes["stale"] += 1
                return None
            if announcement.round > self.round + AHEAD:
                self.outcomes["ahead"] += 1
                return None
        if self._count[peer] >= MOST_PER_PEER:
            self.outcomes["too-many"] += 1
            return None
        self.outcomes["late" if stage in self._closed or announcement.round < (self.round or 0) else "accepted"] += 1
        self._count[peer] += 1
        letter = self._stages.setdefault(stage, {})[peer] = InboxEntry(announcement)
        return letter, True

    def stage(self, round: int, stage: int) -> dict[PeerId, InboxEntry]:
        """The letters of a stage, by peer."""
        return self._stages.get((round, stage), {})

    def earlier(self, round: int, max_staleness: int) -> Iterator[InboxEntry]:
        """Letters of earlier rounds not handed out yet; those too old are counted and passed over."""
        for (then, _), letters in self._stages.items():
            if then >= round:
                continue
            for letter in letters.values():
                if letter.taken:
                    continue
                if then < round - max_staleness:
                    letter.taken = True
                    self.outcomes["stale"] += 1
                else:
                    yield letter

    def close(self, round: int, stage: int) -> None:
        """A stage is over: what is said about it from now on is late."""
        self._closed.add((round, stage))

    def move_to(self, round: int) -> None:
        """We are in this round: forgets what is too old."""
        self.round = round
        oldest = round - self.keep_rounds
        for key in [key for key in self._stages if key[0] < oldest]:
            for peer in self._stages.pop(key):
                self._count[peer] -= 1
                if not self._count[peer]:
                    del self._count[peer]
        self._closed = {key for key in self._closed if key[0] >= oldest}

    def take_outcomes(self) -> dict[str, int]:
        """Counts since the last call."""
        counted = dict(self.outcomes)
        self.outcomes.clear()
        return counted
