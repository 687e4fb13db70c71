"""The inbox: every announcement received, and what has been fetched of it.

Pure state. It decides whether an announcement is accepted before anything is fetched for it: admission, the window of
rounds, duplicates, equivocation. The first announcement of a peer for a stage stands, whatever the peer signs later. A
contribution is handed out once. Memory is bounded by members times rounds in the window.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from swarmgame.game.state import Contribution, PeerId
from swarmgame.swarm.messages import Announcement, ShardEntry

MAX_AHEAD = 2
"""Announcements more rounds ahead than this are dropped; they are requested again when we reach their round."""
MAX_PER_PEER = 256


@dataclass(slots=True)
class InboxEntry:
    """One peer's contribution to one stage, as far as it has arrived.

    Args:
        shards: named by the index; None until the index is here.
        index: as received; empty where the announcement holds it.
        parts: decoded shards by position.
        failed: the reason why it cannot be used; empty if there is none.
        consumed: handed out, or skipped because it became too old.
        fetching: a fetch is in progress.
    """

    announcement: Announcement
    shards: tuple[ShardEntry, ...] | None = None
    index: bytes = b""
    parts: dict[int, Contribution] = field(default_factory=dict)
    failed: str = ""
    consumed: bool = False
    fetching: bool = False

    @property
    def complete(self) -> bool:
        return self.shards is not None and len(self.parts) == len(self.shards)


class Inbox:
    """Entries by round, stage and peer.

    Args:
        peer: ourselves.
        admission: whether a peer may take part.
        keep_rounds: how many rounds back an announcement may be.
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

    def add(self, announcement: Announcement, now: float) -> tuple[InboxEntry, bool] | None:
        """Add an announcement.

        Returns:
            The entry, and whether it is new; None if the announcement is refused (and counted).
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
            if announcement.round > self.round + MAX_AHEAD:
                self.outcomes["ahead"] += 1
                return None
        if self._count[peer] >= MAX_PER_PEER:
            self.outcomes["too-many"] += 1
            return None
        self.outcomes["late" if stage in self._closed or announcement.round < (self.round or 0) else "accepted"] += 1
        self._count[peer] += 1
        entry = self._stages.setdefault(stage, {})[peer] = InboxEntry(announcement)
        return entry, True

    def stage(self, round: int, stage: int) -> dict[PeerId, InboxEntry]:
        """Return the entries of a stage, by peer."""
        return self._stages.get((round, stage), {})

    def earlier(self, round: int, max_staleness: int) -> Iterator[InboxEntry]:
        """Yield entries of earlier rounds that were not handed out yet; skip and count those that are too old."""
        for (then, _), entries in self._stages.items():
            if then >= round:
                continue
            for entry in entries.values():
                if entry.consumed:
                    continue
                if then < round - max_staleness:
                    entry.consumed = True
                    self.outcomes["stale"] += 1
                else:
                    yield entry

    def close(self, round: int, stage: int) -> None:
        """Close a stage: announcements for it are late from now on."""
        self._closed.add((round, stage))

    def move_to(self, round: int) -> None:
        """Set the current round, and drop what has become too old."""
        self.round = round
        oldest = round - self.keep_rounds
        for key in [key for key in self._stages if key[0] < oldest]:
            for peer in self._stages.pop(key):
                self._count[peer] -= 1
                if not self._count[peer]:
                    del self._count[peer]
        self._closed = {key for key in self._closed if key[0] >= oldest}

    def take_outcomes(self) -> dict[str, int]:
        """Return the counts since the last call."""
        counted = dict(self.outcomes)
        self.outcomes.clear()
        return counted
