"""The status of a peer: one immutable snapshot that any thread may read.

`/status` shows it and `/readyz` decides on it. Only the present is kept. Invariant: a reader sees the fields of one
change or of the next, never a mixture.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from enum import StrEnum
from threading import Lock
from typing import Any

from swarmgame.game.protocol import ClosedBy, Collected
from swarmgame.game.report import Observer, RoundReport
from swarmgame.game.state import GameState, Rewards, Round
from swarmgame.observability.author_totals import AuthorTotals
from swarmgame.swarm.counted_peers import COUNTING

DRAIN_SECONDS = 60.0
MAX_STANDINGS = 256
"""Members of which the status shows the standing: any number of invented ones may be there."""
MAX_AUTHORS = 64
"""Authors whose totals it shows, beside those members."""


class Phase(StrEnum):
    """What the peer is doing, in order. FAILED: an error ended it, see `last_error`."""

    STARTING = "starting"
    JOINING = "joining"
    RUNNING = "running"
    FINISHED = "finished"
    STOPPING = "stopping"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The state of a peer at one moment.

    Args:
        phase: see `Phase`.
        peer: its id; empty until the identity is known.
        index: its number in this run or in its Job.
        version: of the swarmgame package.
        sources: fingerprints of what the game rests on: rounds, data, code, rewards, model.
        addresses: multiaddrs at which other peers reach it.
        round, stage: in progress; -1 before the first. `rounds_finished` counts those of earlier processes too.
        max_rounds: of the game.
        members: live members as of the last stage (or of joining), this peer included.
        authors: by author, since this process began: groups that were trained on, mean share of an update, and what was
            refused by reason; of the members above, and of 64 others with most refusals.
        missing: members that had not published when the last stage closed.
        standings: of the other members: whether each counts for quorum and present round, and why; at most 256, those
            that count first.
        alone: no other peer was in the swarm when the last stage closed.
        clock_error: seconds by which this machine's clock is ahead of those of the members that count (negative:
            behind); None where none is known.
        reward: mean reward of the last finished round; None when none was scored.
        registered: whether the peer is registered on the chain; None where no registration is required.
        last_error: the last error as a sentence; empty without one.
        warnings: what a person should know about a run that goes on: code, subject, round, count and text of each; at
            most 16.
        started: Unix seconds.
        round_finished: Unix seconds of the last finished round, or None.
        checkpoint: round of the newest checkpoint on disk, or None.
        chain: the state of the reports to the chain; None, and not shown, where the game has no chain.
        draining_until: Unix seconds until which the peer counts as about to be stopped; 0 without a `/drain`.
    """

    phase: Phase = Phase.STARTING
    peer: str = ""
    index: int = 0
    version: str = ""
    sources: Mapping[str, str] = field(default_factory=dict)
    addresses: tuple[str, ...] = ()
    round: int = -1
    stage: int = -1
    rounds_finished: int = 0
    max_rounds: int = 0
    members: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    standings: Mapping[str, str] = field(default_factory=dict)
    authors: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    alone: bool = False
    clock_error: float | None = None
    reward: float | None = None
    registered: bool | None = None
    last_error: str = ""
    warnings: tuple[Mapping[str, str | int], ...] = ()
    started: float = field(default_factory=time.time)
    round_finished: float | None = None
    checkpoint: int | None = None
    chain: Mapping[str, Any] | None = None
    draining_until: float = 0.0

    def as_json(self) -> dict[str, Any]:
        found = asdict(self)
        del found["draining_until"]
        if self.chain is None:
            del found["chain"]
        return found

    @property
    def not_ready(self) -> str:
        """Why the peer is not ready, as a sentence; empty when it is."""
        if self.phase is not Phase.RUNNING:
            return f"the peer is {self.phase}" + (f": {self.last_error}" if self.last_error else "")
        if time.time() < self.draining_until:
            return "the peer is about to be stopped"
        if self.registered is False:
            return "the peer is not registered on the chain yet, and the game admits registered peers only"
        return ""

    @property
    def not_joined(self) -> str:
        """Why the peer is not ready, unless it was and is about to end."""
        draining = self.phase is Phase.RUNNING and time.time() < self.draining_until
        return "" if draining or self.phase in (Phase.FINISHED, Phase.STOPPING) else self.not_ready


class PeerStatus:
    """Holds the present snapshot: the loop writes it, the endpoints' thread reads it."""

    def __init__(self, *, index: int = 0, max_rounds: int = 0, version: str = "") -> None:
        self._lock = Lock()
        self._current = Snapshot(index=index, max_rounds=max_rounds, version=version)

    @property
    def current(self) -> Snapshot:
        with self._lock:
            return self._current

    def change(self, **changes: Any) -> None:
        """Replace the named fields in one step.

        Raises:
            TypeError: if a name is not a field of `Snapshot`.
        """
        with self._lock:
            self._current = replace(self._current, **changes)

    def snapshot(self) -> dict[str, Any]:
        """Return the present as JSON-like data, with `ready` and `not_ready`, the reason."""
        current = self.current
        return {**current.as_json(), "ready": not current.not_ready, "not_ready": current.not_ready}

    def drain(self) -> None:
        """Be not ready for a minute: the peer is about to be stopped. No longer, since whatever reaches the port can
        request it.
        """
        self.change(draining_until=time.time() + DRAIN_SECONDS)

    def stopping(self, why: str = "") -> None:
        """Be not ready from now on, so that nothing new is sent here while the peer leaves."""
        self.change(phase=Phase.STOPPING, **({"last_error": why} if why else {}))


class StatusObserver(Observer):
    """Updates a `PeerStatus` from the loop."""

    def __init__(self, status: PeerStatus) -> None:
        self._status = status
        self._authors = AuthorTotals()

    def game_started(self, first_round: int, max_rounds: int) -> None:
        self._status.change(phase=Phase.RUNNING, rounds_finished=first_round, max_rounds=max_rounds)

    def round_started(self, round: Round) -> None:
        self._status.change(round=round.number, stage=0, members=tuple(round.members))

    def stage_closed(self, round: Round, stage: int, collected: Collected) -> None:
        self._status.change(
            stage=stage,
            members=collected.members,
            missing=collected.missing,
            standings=dict(sorted(collected.standings.items(), key=_counts_first)[:MAX_STANDINGS]),
            alone=collected.closed_by is ClosedBy.ISOLATED,
            clock_error=collected.clock_error.seconds if collected.clock_error is not None else None,
        )

    def round_finished(self, report: RoundReport, state: GameState, rewards: Rewards) -> None:
        self._authors.add(report.external, report.influence, report.refused)
        totals = self._authors.rows(MAX_AUTHORS, always=self._status.current.standings)
        self._status.change(
            rounds_finished=report.round + 1,
            reward=finite(report.reward),
            round_finished=time.time(),
            peer=report.peer,
            authors={total.author: total.as_json() for total in totals},
        )

    def game_finished(self, rounds: int) -> None:
        current = self._status.current
        done = rounds >= current.max_rounds and current.phase is not Phase.STOPPING
        self._status.change(phase=Phase.FINISHED if done else Phase.STOPPING)


def _counts_first(standing: tuple[str, str]) -> tuple[bool, str]:
    peer, found = standing
    return found not in COUNTING, peer


def finite(value: float) -> float | None:
    """Return the value, or None for NaN and infinities, which JSON does not have."""
    return value if value - value == 0 else None


def first_of(metrics: Mapping[str, float], *names: str) -> float | None:
    """Return the first of the named metrics that is present and finite."""
    for name in names:
        if (value := metrics.get(name)) is not None and finite(value) is not None:
            return value
    return None
