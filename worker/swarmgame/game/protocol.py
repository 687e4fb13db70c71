"""The protocol between the loop and a swarm: join, list members, publish, collect, leave.

A backend moves bytes and decides nothing about training. Invariants: contributions that `collect` returns were checked
(limits, schema, signature, hash, age) and are sorted by (round, peer), so they do not depend on the order of arrival.
Without any other live peer, `closed_by` is ISOLATED; every refused message is counted in `outcomes` under its reason.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol

from swarmgame.game.state import Contribution, PeerId


@dataclass(frozen=True, slots=True)
class Member:
    """A live peer and its position in the game, from its last heartbeat.

    Args:
        weight: in the present round; 0 for a peer that does not count. One with a weight has a role, and others stay
            for it after their last round.
        contributed: the latest round of which we have its last announcement; None where positions are believed.
    """

    peer: PeerId
    round: int
    stage: int
    weight: float = 1.0
    contributed: int | None = None

    @property
    def reached(self) -> int:
        """The round that the peer has reached, by what it has contributed."""
        return self.round if self.contributed is None else min(self.round, self.contributed + 1)

    @property
    def next(self) -> int:
        """The round in which a peer that skips ahead meets this one: its position may be that of its last message."""
        return self.round if self.contributed is None else self.contributed + 1


@dataclass(frozen=True, slots=True)
class Claim:
    """The author's own summary of one of its groups. Other peers use it only to choose what to fetch.

    Args:
        mean: mean reward; NaN when not yet known.
        nonzero_advantage: whether the rewards differ, so that the group has a training signal.
    """

    mean: float
    nonzero_advantage: bool


class Exchange(StrEnum):
    """GATHER: fetch every contribution, for the next stage. PULL: fetch only as many groups as will be trained on."""

    GATHER = "Gather"
    PULL = "Pull"


class ClosedBy(StrEnum):
    """Why a stage closed. LAGGING: most other peers are so many rounds ahead that no more contributions will come."""

    QUORUM = "quorum"
    DEADLINE = "deadline"
    ISOLATED = "alone"
    LAGGING = "behind"


@dataclass(frozen=True, slots=True)
class CollectPolicy:
    """When a stage closes, and what is fetched.

    Args:
        exchange: GATHER or PULL.
        quorum: share of the weight of the counted members, this peer included, that must have published; in (0, 1].
        deadline_seconds: longest wait, from the call. For peers that are no anchors it may be shorter.
        external_groups: PULL: number of groups of other peers to fetch; backends fetch complete shards, so a few more
            may come.
        max_per_peer: PULL: at most this many groups of one peer are counted towards `external_groups`.
        prefer_nonzero_advantage: PULL: fetch groups that claim a nonzero advantage first.
        max_staleness: greatest age of a contribution in rounds, in both modes; 0 means this round only.
        avoided: PULL: peers of whom nothing is fetched.
        seed: PULL: breaks ties.
        collected: (round, stage, peer) of contributions that were already returned, perhaps by an earlier process.
        invalid: (round, stage, peer) of returned contributions with groups that could not be used.
    """

    exchange: Exchange
    quorum: float
    deadline_seconds: float
    external_groups: int = 0
    max_per_peer: int = 0
    prefer_nonzero_advantage: bool = True
    max_staleness: int = 0
    avoided: frozenset[PeerId] = frozenset()
    seed: int = 0
    collected: frozenset[tuple[int, int, PeerId]] = frozenset()
    invalid: frozenset[tuple[int, int, PeerId]] = frozenset()

    @property
    def max_lag(self) -> int:
        """How many rounds a peer may be behind and still take part: one at least, because peers that were killed
        together resume that far apart."""
        return max(1, self.max_staleness)


@dataclass(frozen=True, slots=True)
class Origin:
    """The proof that a contribution is its author's, for the archive.

    Args:
        announcement: the signed message that names the index by its hash.
        index: of the contribution's shards; empty where the announcement holds it.
        shards: SHA-256 of each shard that was received, in order.
        groups: how many groups each of them holds.
    """

    announcement: bytes
    index: bytes
    shards: tuple[bytes, ...]
    groups: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class ClockError:
    """How far this machine's clock is from those of other peers.

    Args:
        seconds: that ours is ahead; negative: behind. 0 unless more than half of the counted weight agrees.
        peers: whose clocks are known, of those that count.
    """

    seconds: float
    peers: int


COUNTING = frozenset({"anchor", "counted", "provisional"})
"""Standings of peers for which stages wait."""


@dataclass(frozen=True)
class Collected:
    """The result of collecting a stage.

    Args:
        contributions: of other peers, sorted by (round, peer); in PULL mode with the fetched groups only.
        members: live members when the stage closed, sorted, this peer included.
        missing: counted members that had not published when it closed.
        closed_by: why it closed.
        outcomes: number of messages by outcome since the last call: `accepted`, `late`,
            `duplicate`, `bad-signature`, `bad-hash`, `too-large`, `malformed`, `stale`, `not-admitted`, `unreachable`,
            …
        seconds: duration of the call.
        bytes_sent, bytes_received: since the last call.
        origins: one for each contribution, in order; empty where the backend signs nothing.
        arrivals: one number for each contribution: whose is less, that was announced to us first; empty: as listed.
        standings: whether each other live member counts, and why; empty where all do.
        clock_error: of this machine; None where no other clock is known.
    """

    contributions: tuple[Contribution, ...]
    members: tuple[PeerId, ...]
    missing: tuple[PeerId, ...]
    closed_by: ClosedBy
    outcomes: Mapping[str, int] = field(default_factory=dict)
    seconds: float = 0.0
    bytes_sent: int = 0
    bytes_received: int = 0
    origins: tuple[Origin, ...] = ()
    arrivals: tuple[int, ...] = ()
    standings: Mapping[PeerId, str] = field(default_factory=dict)
    clock_error: ClockError | None = None

    @property
    def delivered(self) -> frozenset[PeerId]:
        """The members that count and are not missing. A stage does not wait for others, so they may still deliver."""
        idle = {peer for peer, standing in self.standings.items() if standing not in COUNTING}
        return frozenset(self.members) - set(self.missing) - idle


class CommunicationManager(Protocol):
    """One peer's connection to its swarm. Calls block; a backend runs its event loop in a thread of its own."""

    @property
    def peer(self) -> PeerId: ...

    def join(self, *, expect: Sequence[PeerId] = (), min_replicas: int = 1, timeout_seconds: float = 120.0) -> None:
        """Enter the swarm, and wait until `min_replicas` members (this peer included) are seen or the time is over.

        Args:
            expect: members from a checkpoint; they count as live until one heartbeat lifetime has passed without
                a heartbeat.

        Raises:
            Temporary: the transport could not be started, or no initial peer could be reached and `min_replicas` > 1.
        """
        ...

    def membership(self) -> tuple[Member, ...]:
        """Return the live and admitted members, sorted by peer, this peer included."""
        ...

    def announce_progress(self, round: int, stage: int) -> None:
        """Set the position that the next heartbeat carries."""
        ...

    def publish(self, contribution: Contribution, claims: Sequence[Claim] = ()) -> None:
        """Sign and announce a contribution, and serve it until it is too old for every peer. Idempotent.

        Args:
            claims: one a group, or none at all.
        """
        ...

    def collect(
        self, round: int, stage: int, policy: CollectPolicy, *, stopped: Callable[[], bool] = lambda: False
    ) -> Collected:
        """Wait for quorum or deadline (or until `stopped()`), then return the contributions of other peers. Our own
        counts towards the quorum.
        """
        ...

    def leave(self) -> None:
        """Announce that this peer leaves, so that others do not wait for it, and close everything. Idempotent."""
        ...
