"""Counted peers: which other peers a stage waits for, and with what weight.

Identities are free, so a heartbeat alone gives no weight. An **anchor** is a peer that the manifest or the runner
vouches for: it counts from the start, and after a missed deadline once it has delivered a complete round. Any other
peer counts after `probation_rounds` complete rounds in a row, until its first miss; a round that it does not deliver
begins the row again. Where anchors are live, all other peers together weigh less than a third, so that anchors alone
reach a quorum of two thirds. Where there are none, those that were heard before the first stage closed count
provisionally; so does one that is heard while no other peer counts.

Pure: rounds are the only time, and each change returns a new value.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any

from swarmgame.game.state import PeerId

OTHERS_SHARE = 0.49
"""Most that all peers without an anchor weigh together, as a multiple of the anchors' weight: 0.49 of 1.49 is a little
less than a third, and a quorum of 67 % is reached by anchors alone."""
_PAUSE_DOUBLINGS = 8


class Standing(StrEnum):
    """Whether a peer counts, and why.

    ANCHOR, COUNTED and PROVISIONAL count. PROBATION: it has not delivered enough rounds yet. MISSED: it did not
    deliver, and has to earn its place again (an anchor by one round). SAME_ADDRESS: enough peers of its address count.
    """

    ANCHOR = "anchor"
    COUNTED = "counted"
    PROVISIONAL = "provisional"
    PROBATION = "probation"
    MISSED = "missed"
    SAME_ADDRESS = "same-address"


COUNTING = frozenset({Standing.ANCHOR, Standing.COUNTED, Standing.PROVISIONAL})


@dataclass(frozen=True, slots=True)
class CountingRules:
    """The rules of a game.

    Args:
        anchors: ids of the peers that are vouched for; None: every admitted peer is (a list or a chain admits them).
        probation_rounds: complete rounds in a row after which any other peer counts.
        per_address: most counted peers of one remote address that are no anchors.
        address: the address from which a peer is connected; "" where they are not bounded; None where it has never been
            connected itself, and so does not count: with one connection a peer could be any number of others.
    """

    anchors: frozenset[PeerId] | None = frozenset()
    probation_rounds: int = 3
    per_address: int = 4
    address: Callable[[PeerId], str | None] = lambda peer: ""

    def is_anchor(self, peer: PeerId) -> bool:
        return self.anchors is None or peer in self.anchors


@dataclass(frozen=True, slots=True)
class PeerRecord:
    """What is known of one peer.

    Args:
        streak: complete rounds in a row, of those that were judged.
        since: the round of its last miss; earlier rounds no longer speak for it.
    """

    standing: Standing
    streak: int = 0
    since: int = 0

    @property
    def counts(self) -> bool:
        return self.standing in COUNTING


@dataclass(frozen=True)
class CountedPeers:
    """The standing of every live peer.

    Args:
        records: of peers that were live at the last change.
        started: whether the first stage has closed.
        misses: how often a miss has left no peer that counts, since one has earned its place.
        adopts_from: round from which other peers may count provisionally while none counts.
    """

    rules: CountingRules = field(default_factory=CountingRules)
    records: Mapping[PeerId, PeerRecord] = field(default_factory=dict)
    started: bool = False
    misses: int = 0
    adopts_from: int = 0

    # ── who counts
    def standing(self, peer: PeerId) -> Standing:
        """Return the standing of a peer; that of a newcomer where nothing is known of it."""
        record = self.records.get(peer)
        if record is not None:
            return record.standing
        return Standing.ANCHOR if self.rules.is_anchor(peer) else Standing.PROBATION

    def is_connected(self, peer: PeerId) -> bool:
        """Whether a peer has ever been connected to us itself."""
        return self.rules.address(peer) is not None

    def streak(self, peer: PeerId) -> int:
        """Return for how many judged rounds in a row a peer has delivered, at most `probation_rounds`."""
        record = self.records.get(peer)
        return record.streak if record is not None else 0

    def weights(self, live: Collection[PeerId]) -> Mapping[PeerId, float]:
        """Return the weights of the peers that count, of those that are live. Our own weight is 1."""
        counting = [peer for peer in live if self.standing(peer) in COUNTING]
        anchors = [peer for peer in counting if self.rules.is_anchor(peer)]
        others = len(counting) - len(anchors)
        share = 1.0
        if others and any(self.rules.is_anchor(peer) for peer in live):
            share = min(1.0, OTHERS_SHARE * (1 + len(anchors)) / others)
        return {peer: 1.0 if self.rules.is_anchor(peer) else share for peer in counting}

    def state_dict(self) -> Mapping[str, Any]:
        """Return the standings, for a checkpoint."""
        return {
            "records": {peer: [str(each.standing), each.streak, each.since] for peer, each in self.records.items()},
            "started": self.started,
            "misses": self.misses,
            "adopts_from": self.adopts_from,
        }

    def restored(self, state: Mapping[str, Any]) -> CountedPeers:
        """Return the standings of a checkpoint under these rules, which may have other anchors since."""
        records = {}
        for peer, (standing, streak, since) in state["records"].items():
            record = PeerRecord(Standing(standing), streak, since)
            if self.rules.is_anchor(peer) and record.standing is not Standing.MISSED:
                record = replace(record, standing=Standing.ANCHOR)
            elif record.standing is Standing.ANCHOR and not self.rules.is_anchor(peer):
                record = replace(record, standing=Standing.PROBATION)
            records[peer] = record
        return replace(
            self,
            records=records,
            started=state["started"],
            misses=state["misses"],
            adopts_from=state["adopts_from"],
        )

    # ── changes
    def observe(self, live: Collection[PeerId], round: int) -> CountedPeers:
        """Note who is live. A peer that is gone is forgotten, and has to earn its place again.

        Args:
            round: ours.
        """
        records = {peer: self.records.get(peer) or PeerRecord(self.standing(peer)) for peer in live}
        found = self if records == self.records else replace(self, records=records)
        return found._adopt() if found._adopts(round) else found

    def _adopts(self, round: int) -> bool:
        if any(self.rules.is_anchor(peer) for peer in self.records):
            return False
        return not self.started or (
            round >= self.adopts_from and not any(record.counts for record in self.records.values())
        )

    def _adopt(self) -> CountedPeers:
        """Let peers count provisionally. A peer that was left alone may be the slow one: it tries those that missed."""
        records = dict(self.records)
        tried = {Standing.PROBATION, Standing.MISSED} if self.started else {Standing.PROBATION}
        known = [peer for peer, record in records.items() if record.standing in tried and self.is_connected(peer)]
        for peer in sorted(known):
            standing = Standing.PROVISIONAL if self._has_room(peer, records) else Standing.SAME_ADDRESS
            records[peer] = replace(records[peer], standing=standing)
        return self if records == self.records else replace(self, records=records)

    def start(self) -> CountedPeers:
        """Note that the first stage has closed."""
        return self if self.started else replace(self, started=True)

    def miss(self, peers: Iterable[PeerId], round: int) -> CountedPeers:
        """Stop counting peers for which a stage waited in vain."""
        records = dict(self.records)
        for peer in peers:
            if self.standing(peer) in COUNTING and peer in records:
                records[peer] = PeerRecord(Standing.MISSED, since=round)
        if records == self.records:
            return self
        found = replace(self, records=records)
        if any(record.counts for record in records.values()):
            return found
        # With a new key each time, a stranger would otherwise be waited for in every round.
        pause = self.rules.probation_rounds * 2 ** min(self.misses, _PAUSE_DOUBLINGS)
        return replace(found, misses=self.misses + 1, adopts_from=round + pause)

    def judge(
        self,
        judged: int,
        complete: Collection[PeerId],
        expected: Collection[PeerId],
        round: int,
        undecided: Collection[PeerId] = (),
    ) -> CountedPeers:
        """Apply what was delivered in a round whose contributions can no longer come.

        Args:
            judged: that round.
            complete: peers with valid contributions to all of its stages.
            expected: peers whose contributions would have reached us; in a ring these are few.
            round: ours.
            undecided: peers that do not count and of which a body of that round is still on its way; see `decide`.
        """
        failed = {peer for peer in expected if peer not in complete and not self.rules.is_anchor(peer)}
        found = self.miss([peer for peer in failed if peer in self.records], round)
        records = dict(found.records)
        for peer, record in found.records.items():
            # From a peer that does not count, one watched round in three would otherwise be enough.
            absent = not record.counts and peer not in complete and not self.rules.is_anchor(peer)
            if peer in failed or (absent and peer not in undecided):
                records[peer] = replace(record, streak=0)
        return found._promote(judged, complete, records)

    def decide(self, judged: int, peer: PeerId, *, complete: bool) -> CountedPeers:
        """Apply whether the body of a round has come from a peer that was undecided when the round was judged."""
        record = self.records.get(peer)
        if record is None or record.counts:
            return self
        if complete:
            return self._promote(judged, [peer], dict(self.records))
        return replace(self, records={**self.records, peer: replace(record, streak=0)})

    def _promote(self, judged: int, complete: Collection[PeerId], records: dict[PeerId, PeerRecord]) -> CountedPeers:
        """Add a complete round to these peers.

        Args:
            records: changed in place.
        """
        for peer in sorted(complete):
            if peer in records and judged >= records[peer].since:
                records[peer] = self._promoted(peer, records)
        earned = any(record.standing is Standing.COUNTED for record in records.values())
        return replace(self, records=records, misses=0 if earned else self.misses)

    def _promoted(self, peer: PeerId, records: Mapping[PeerId, PeerRecord]) -> PeerRecord:
        record = records[peer]
        streak = min(record.streak + 1, self.rules.probation_rounds)
        if self.rules.is_anchor(peer):
            return PeerRecord(Standing.ANCHOR, streak, record.since)
        if streak < self.rules.probation_rounds or record.standing is Standing.COUNTED:
            return replace(record, streak=streak)
        if not self.is_connected(peer):
            return replace(record, streak=streak)
        if record.standing is Standing.PROVISIONAL or self._has_room(peer, records):
            return PeerRecord(Standing.COUNTED, streak, record.since)
        return PeerRecord(Standing.SAME_ADDRESS, streak, record.since)

    def _has_room(self, peer: PeerId, records: Mapping[PeerId, PeerRecord]) -> bool:
        address = self.rules.address(peer)
        if not address:
            return True
        counted = Counter(
            self.rules.address(other)
            for other, record in records.items()
            if record.counts and not self.rules.is_anchor(other)
        )
        return counted[address] < self.rules.per_address
