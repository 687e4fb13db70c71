"""The inbox: every announcement received, and what has been fetched of it.

Pure state. It decides whether an announcement is accepted before anything is fetched for it, and most of it before its
signature is checked: admission, the stages of the game, the window of rounds, duplicates, equivocation, and how many
there are. Two different announcements of a peer for one stage, both signed, are no mistake of the network: neither is
used. A peer that was killed plays rounds again from its checkpoint, and differs, so the first time costs it that round
alone; a second time soon after bans it for ten rounds, then for twice as many each time. A contribution is handed out
once. One peer has at most one entry for each stage in the window; peers that do not count have `OTHERS_ENTRIES`
together, and a share of memory (`memory`).
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from swarmgame.game.state import Contribution, PeerId
from swarmgame.swarm.memory import KeptBytes
from swarmgame.swarm.messages import Announcement, ShardEntry
from swarmgame.swarm.shares import Pool, Share, Shares

MAX_AHEAD = 2
"""Announcements more rounds ahead than this are dropped; they are requested again when we reach their round."""
OTHERS_ENTRIES = Pool(each=256, total=4096, address=1024)
"""Announcements of peers that do not count: 4,096 take 8 MiB."""
COUNTED_ENTRIES = Pool(each=65_536, total=1 << 20)
"""Each counting peer has one for each stage and round of the window, so that only their number matters."""
BAN_ROUNDS = 10
FORGIVEN_ROUNDS = 10 * BAN_ROUNDS
"""Rounds after the end of a ban after which the peer is treated as if it had never been banned."""
MAX_BANS = 4096
"""Bans that are remembered; the oldest are forgotten first."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Ban:
    """A peer that has signed two contributions to one stage.

    Args:
        until: the first round in which it may take part again.
        rounds: for which it was banned beyond the round itself.
        counted: whether it counted until then.
        round: to which it has signed two; nothing of that round is accepted later either.
    """

    until: int
    rounds: int
    counted: bool
    round: int


@dataclass(slots=True)
class InboxEntry:
    """One peer's contribution to one stage, as far as it has arrived.

    Args:
        shards: named by the index; None until the index is here.
        index: as received; empty where the announcement holds it.
        parts: decoded shards by position.
        failed: the reason why it cannot be used; empty if there is none.
        consumed: handed out, or left out by the choice of what is fetched.
        stale: it has become too old to be handed out.
        fetching: a fetch is in progress.
        arrival: how many announcements were accepted before.
        checked: number of shards that were fetched and could be decoded.
        withheld: positions of shards that were requested and have not come.
        place: its place among the entries of its author.
        kept: the memory of its index and parts.
        index_kept: that of the index alone.
        dropped: its round is too old; nothing more is kept for it.
        came: it was complete when its parts were dropped.
    """

    announcement: Announcement
    shards: tuple[ShardEntry, ...] | None = None
    index: bytes = b""
    parts: dict[int, Contribution] = field(default_factory=dict)
    failed: str = ""
    consumed: bool = False
    stale: bool = False
    fetching: bool = False
    arrival: int = 0
    checked: int = 0
    withheld: set[int] = field(default_factory=set)
    place: Share = field(default_factory=lambda: Share("", False))
    kept: Share = field(default_factory=lambda: Share("", False))
    index_kept: int = 0
    dropped: bool = False
    came: bool = False

    @property
    def complete(self) -> bool:
        return self.shards is not None and len(self.parts) == len(self.shards)

    def drop_parts(self) -> None:
        """Drop the parts, and remember whether they were all."""
        self.came = self.came or self.complete
        self.parts.clear()


class Inbox:
    """Entries by round, stage and peer.

    Args:
        peer: ourselves.
        admission: whether a peer may take part.
        keep_rounds: how many rounds back an announcement may be.
        stages: of a round.
        counts: whether a peer counts.
        address: from which a peer is connected; empty where it is not known.
    """

    def __init__(
        self,
        peer: PeerId,
        admission: Callable[[PeerId], bool],
        keep_rounds: int,
        stages: int = 1,
        counts: Callable[[PeerId], bool] = lambda peer: True,
        address: Callable[[PeerId], str] = lambda peer: "",
    ) -> None:
        self.peer = peer
        self.admission = admission
        self.keep_rounds = keep_rounds
        self.stages = stages
        self.counts = counts
        self.address = address
        self.kept_bytes = KeptBytes()
        self.round: int | None = None
        self.outcomes: Counter[str] = Counter()
        self._stages: dict[tuple[int, int], dict[PeerId, InboxEntry]] = {}
        self._closed: set[tuple[int, int]] = set()
        self._bans: dict[PeerId, _Ban] = {}
        self._arrived = 0
        self.places = Shares(COUNTED_ENTRIES, OTHERS_ENTRIES)

    def refusal(self, announcement: Announcement, sender: PeerId) -> str:
        """Return why an announcement is refused whoever signed it; empty where its signature has to be checked.

        Args:
            sender: who sent it, which is not its author where it was passed on.
        """
        peer = announcement.peer
        if not self.admission(peer):
            return "not-admitted"
        if self._is_refused(announcement):
            return "banned"
        if announcement.stage >= self.stages:
            return "no-such-stage"
        if sender != peer and not self.counts(sender) and not self.counts(peer):
            return "second-hand"
        known = self._stages.get((announcement.round, announcement.stage), {}).get(peer)
        return "too-many" if known is None and not self.places.room(self._share(peer)) else ""

    def is_known(self, announcement: Announcement) -> bool:
        """Return whether the same message was accepted before: its signature need not be checked again."""
        known = self._stages.get((announcement.round, announcement.stage), {}).get(announcement.peer)
        return known is not None and known.announcement.message == announcement.message

    def _share(self, peer: PeerId) -> Share:
        return Share(peer, self.counts(peer), self.address(peer))

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
        if self._is_refused(announcement):
            self.outcomes["banned"] += 1
            return None
        if announcement.expires <= now:
            self.outcomes["stale"] += 1
            return None
        known = self._stages.get(stage, {}).get(peer)
        if known is not None:
            if known.announcement.root != announcement.root:
                self._ban(announcement)
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
        place = self._share(peer)
        if not self.places.take(place, 1):
            self.outcomes["too-many"] += 1
            return None
        self.outcomes["late" if stage in self._closed or announcement.round < (self.round or 0) else "accepted"] += 1
        entry = InboxEntry(announcement, arrival=self._arrived, place=place, kept=self._share(peer))
        self._stages.setdefault(stage, {})[peer] = entry
        self._arrived += 1
        return entry, True

    def is_banned(self, peer: PeerId) -> bool:
        """Return whether a peer is left out in this round, because it has signed two contributions to one stage."""
        ban = self._bans.get(peer)
        return ban is not None and (self.round or 0) < ban.until

    def _is_refused(self, announcement: Announcement) -> bool:
        ban = self._bans.get(announcement.peer)
        return self.is_banned(announcement.peer) or (ban is not None and announcement.round == ban.round)

    def bans(self) -> Mapping[str, Any]:
        """Return the bans, for a checkpoint: without them a restarted peer would use what it had refused."""
        return {peer: [ban.until, ban.rounds, ban.counted, ban.round] for peer, ban in self._bans.items()}

    def restore_bans(self, bans: Mapping[str, Any]) -> None:
        """Take back the bans of a checkpoint."""
        self._bans = {peer: _Ban(*ban) for peer, ban in bans.items()}

    def has_banned_counted(self) -> bool:
        """Return whether a peer that counted is left out in this round: without it we are not alone for good."""
        return any(ban.counted and (self.round or 0) < ban.until for ban in self._bans.values())

    def _ban(self, second: Announcement) -> None:
        """Ban a peer, and drop what it has sent and was not handed out: of that round, or if it is banned for longer,
        of all rounds.
        """
        peer, now = second.peer, max(self.round or 0, second.round)
        self.outcomes["equivocation"] += 1
        counted = self.counts(peer)
        last = self._bans.pop(peer, None)
        if last is None or now > last.until + FORGIVEN_ROUNDS:
            self._bans[peer] = _Ban(second.round + 1, 0, counted, second.round)
            what = "nothing of it is used in that round"
        else:
            rounds = max(BAN_ROUNDS, 2 * last.rounds)
            self._bans[peer] = _Ban(now + 1 + rounds, rounds, counted, second.round)
            what = f"nothing of it is used for {rounds} rounds"
        while len(self._bans) > MAX_BANS:
            del self._bans[next(iter(self._bans))]
        for (round, _), entries in self._stages.items():
            entry = entries.get(peer)
            if entry is not None and not entry.consumed and (self._bans[peer].rounds or round == second.round):
                entry.failed = "equivocation"
                self.drop_parts(entry)
        logger.warning(
            "peer %s has signed two different contributions to round %d, stage %d, as a peer does that was killed and "
            "plays the round again: %s",
            peer,
            second.round,
            second.stage,
            what,
        )

    def stage(self, round: int, stage: int) -> dict[PeerId, InboxEntry]:
        """Return the entries of a stage, by peer."""
        return self._stages.get((round, stage), {})

    def earlier(self, round: int, max_staleness: int) -> Iterator[InboxEntry]:
        """Yield entries of earlier rounds that were not handed out yet; skip and count those that are too old."""
        for (then, _), entries in self._stages.items():
            if then >= round:
                continue
            for entry in entries.values():
                if entry.consumed or entry.stale:
                    continue
                if then < round - max_staleness:
                    entry.stale = True
                    self.outcomes["stale"] += 1
                else:
                    yield entry

    def close(self, round: int, stage: int) -> None:
        """Close a stage: announcements for it are late from now on."""
        self._closed.add((round, stage))

    def move_to(self, round: int) -> None:
        """Set the current round, and drop what is too old or, announced before we had a round, too far ahead."""
        self.round = round
        oldest = round - self.keep_rounds
        for key in [key for key in self._stages if not oldest <= key[0] <= round + MAX_AHEAD]:
            for entry in self._stages.pop(key).values():
                entry.dropped = True
                self.places.give_back(entry.place)
                self.kept_bytes.give_back(entry.kept)
                # A fetch that is in progress may still drop the parts, and must give nothing back again.
                entry.index_kept = 0
                entry.drop_parts()
        for entries in self._stages.values():
            for entry in entries.values():
                # What was handed out was in use until the round was over.
                if entry.consumed or entry.stale or entry.failed:
                    self.drop_parts(entry)
        self._closed = {key for key in self._closed if key[0] >= oldest}

    def keep(self, entry: InboxEntry, size: int) -> bool:
        """Return whether an entry may keep so many bytes more, and note them if so."""
        return not entry.dropped and self.kept_bytes.take(entry.kept, size)

    def drop_parts(self, entry: InboxEntry) -> None:
        """Drop what was fetched of an entry, but its index."""
        entry.drop_parts()
        self.kept_bytes.give_back(entry.kept, entry.kept.amount - entry.index_kept)

    def take_outcomes(self) -> dict[str, int]:
        """Return the counts since the last call."""
        counted = dict(self.outcomes)
        self.outcomes.clear()
        return counted
