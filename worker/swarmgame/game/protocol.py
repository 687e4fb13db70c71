"""The protocol between the loop and a swarm: join, see who is there, publish, collect, leave.

A backend moves bytes and decides nothing about learning. Invariants: what `collect` returns was checked (caps, schema,
signature, hash, freshness) and is sorted by (round, peer), so that it does not depend on the order of arrival; nothing
falls silently back to a swarm of one: `closed_by` says ISOLATED, and every message that was refused is in `outcomes` under
its reason.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol

from swarmgame.game.state import Contribution, PeerId


@dataclass(frozen=True, slots=True)
class Member:
    """A live peer, by its last heartbeat: where it is in the game."""

    peer: PeerId
    round: int
    stage: int


@dataclass(frozen=True, slots=True)
class Claim:
    """What an author says of one of its groups, so that others can choose before they fetch. Never believed, only used
    to choose.

    Args:
        mean: mean reward; NaN when not known yet.
        nonzero_advantage: whether the rewards differ, that is, whether the group teaches anything.
    """

    mean: float
    nonzero_advantage: bool


class Exchange(StrEnum):
    """GATHER: the next stage needs what everyone said. PULL: only as many groups of others as will be trained on."""

    GATHER = "Gather"
    PULL = "Pull"


class ClosedBy(StrEnum):
    """Why a stage closed. LAGGING: most others are so many rounds ahead that nobody will say more about this one."""

    QUORUM = "quorum"
    DEADLINE = "deadline"
    ISOLATED = "alone"
    LAGGING = "behind"


@dataclass(frozen=True, slots=True)
class CollectPolicy:
    """When a stage closes, and what is fetched.

    Args:
        exchange: GATHER or PULL.
        quorum: share of the live members, ourselves included, that must have spoken; in (0, 1].
        deadline_seconds: longest wait, from the call.
        external_groups: PULL: how many groups of others are wanted; backends fetch whole shards, so somewhat more may come.
        max_per_peer: PULL: at most this many groups of one peer are counted towards `external_groups`.
        prefer_nonzero_advantage: PULL: groups that claim a spread first (the others only when too few do).
        max_staleness: how many rounds back a contribution may be; 0 means this round only. Applies to both modes.
        seed: PULL: makes the choice among equals deterministic.
        collected: (round, stage, peer) of contributions that were there before, perhaps in an earlier process: not handed
            out again.
    """

    exchange: Exchange
    quorum: float
    deadline_seconds: float
    external_groups: int = 0
    max_per_peer: int = 0
    prefer_nonzero_advantage: bool = True
    max_staleness: int = 0
    seed: int = 0
    collected: frozenset[tuple[int, int, PeerId]] = frozenset()

    @property
    def max_lag(self) -> int:
        """How many rounds a peer may be behind and still take part: one at least, because peers that were killed
        together resume that far apart."""
        return max(1, self.max_staleness)


@dataclass(frozen=True)
class Collected:
    """What a stage brought.

    Args:
        contributions: of others, of this stage, sorted by (round, peer); in PULL mode with the fetched groups only.
        members: live members when the stage closed, sorted, ourselves included.
        missing: members that had not spoken when it closed.
        closed_by: why it closed.
        outcomes: running counts of messages by what became of them since the last call: `accepted`, `late`,
            `duplicate`, `bad-signature`, `bad-hash`, `too-large`, `malformed`, `stale`, `not-admitted`, `unreachable`,
            …
        seconds: from the call to its return.
        bytes_sent, bytes_received: since the last call.
    """

    contributions: tuple[Contribution, ...]
    members: tuple[PeerId, ...]
    missing: tuple[PeerId, ...]
    closed_by: ClosedBy
    outcomes: Mapping[str, int] = field(default_factory=dict)
    seconds: float = 0.0
    bytes_sent: int = 0
    bytes_received: int = 0


class CommunicationManager(Protocol):
    """One peer's connection to its swarm. Calls block; backends run their own event loop in a thread of their own."""

    @property
    def peer(self) -> PeerId: ...

    def join(self, *, expect: Sequence[PeerId] = (), at_least: int = 1, timeout_seconds: float = 120.0) -> None:
        """Enters the swarm and waits until `at_least` members (ourselves included) are seen, or the time is over.

        Args:
            expect: members known from a checkpoint: counted as live until they have been silent for one heartbeat
                lifetime.

        Raises:
            Temporary: the transport could not be started, or no initial peer could be reached and `at_least` > 1.
        """
        ...

    def membership(self) -> tuple[Member, ...]:
        """Live and admitted members, sorted by peer, ourselves included."""
        ...

    def announce_progress(self, round: int, stage: int) -> None:
        """Where we are; goes out with the next heartbeat."""
        ...

    def publish(self, contribution: Contribution, claims: Sequence[Claim] = ()) -> None:
        """Says something: signed, announced, and served until it is too old for everyone. Publishing the same again is
        harmless.

        Args:
            claims: one a group, or none.
        """
        ...

    def collect(
        self, round: int, stage: int, policy: CollectPolicy, *, stopped: Callable[[], bool] = lambda: False
    ) -> Collected:
        """Waits for quorum or deadline (or until `stopped()`), then returns what others said. Our own contribution
        counts as spoken.
        """
        ...

    def leave(self) -> None:
        """Says goodbye, so that others do not wait for us, and closes everything. May be called twice."""
        ...
