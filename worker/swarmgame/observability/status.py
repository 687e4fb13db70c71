"""Status: where a peer is, at any moment, as one immutable snapshot that any thread may read.

It is what `/status` shows and what `/readyz` decides on. It is not a log and not a metric: only the present is kept.
Invariant: a reader sees the fields of one change or of the next, never a mixture.
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

DRAIN_SECONDS = 60.0


class Phase(StrEnum):
    """What the peer is doing, in the order in which it does it. FAILED: an error ended it, and `last_error` says which."""

    STARTING = "starting"
    JOINING = "joining"
    RUNNING = "running"
    FINISHED = "finished"
    STOPPING = "stopping"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Snapshot:
    """One moment of a peer.

    Args:
        phase: see `Phase`.
        peer: its id; empty until the transport is up.
        index: its number in this run or in its Job.
        version: of the swarmgame package.
        addresses: multiaddrs at which others can reach it.
        round, stage: in progress; -1 before the first. `rounds_finished` counts what is behind us, earlier processes
            included.
        max_rounds: of the game.
        members: live members as of the last stage (or of joining), ourselves included.
        missing: members that had not spoken when the last stage closed.
        alone: nobody else was in the swarm when the last stage closed.
        reward: mean reward of the last finished round; None when none was scored.
        registered: whether the chain knows us; None where no registration is required.
        last_error: the last thing that went wrong, for a person; empty when nothing did.
        started: Unix seconds.
        round_finished: Unix seconds of the last finished round, or None.
        checkpoint: round of the newest checkpoint on disk, or None.
        chain: how we stand with the chain (`swarmgame_chain.reporter.ReporterStatus`); None, and not shown, where the game has
            none.
        draining_until: Unix seconds until which we count as about to be stopped; 0 when nobody said so.
    """

    phase: Phase = Phase.STARTING
    peer: str = ""
    index: int = 0
    version: str = ""
    addresses: tuple[str, ...] = ()
    round: int = -1
    stage: int = -1
    rounds_finished: int = 0
    max_rounds: int = 0
    members: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    alone: bool = False
    reward: float | None = None
    registered: bool | None = None
    last_error: str = ""
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
        """Why this peer is not ready, as a sentence; empty when it is."""
        if self.phase is not Phase.RUNNING:
            return f"the peer is {self.phase}" + (f": {self.last_error}" if self.last_error else "")
        if time.time() < self.draining_until:
            return "the peer is about to be stopped"
        if self.registered is False:
            return "the peer is not registered on the chain yet, and the game admits registered peers only"
        return ""


class PeerStatus:
    """The holder of the present snapshot; written by the loop, read by the endpoints' thread."""

    def __init__(self, *, index: int = 0, max_rounds: int = 0, version: str = "") -> None:
        self._lock = Lock()
        self._current = Snapshot(index=index, max_rounds=max_rounds, version=version)

    @property
    def current(self) -> Snapshot:
        with self._lock:
            return self._current

    def change(self, **changes: Any) -> None:
        """Replaces the named fields in one step.

        Raises:
            TypeError: if a name is not a field of `Snapshot`.
        """
        with self._lock:
            self._current = replace(self._current, **changes)

    def snapshot(self) -> dict[str, Any]:
        """The present as JSON-like data, with `ready` and, where it is false, `not_ready`."""
        current = self.current
        return {**current.as_json(), "ready": not current.not_ready, "not_ready": current.not_ready}

    def drain(self) -> None:
        """Somebody announces that we are about to be stopped: not ready for a minute. No longer, for anyone who reaches
        the port can say so.
        """
        self.change(draining_until=time.time() + DRAIN_SECONDS)

    def stopping(self, why: str = "") -> None:
        """From now on not ready, so that nothing new is sent here while we leave."""
        self.change(phase=Phase.STOPPING, **({"last_error": why} if why else {}))


class StatusObserver(Observer):
    """Feeds a `PeerStatus` from the loop."""

    def __init__(self, status: PeerStatus) -> None:
        self._status = status

    def game_started(self, first_round: int, max_rounds: int) -> None:
        self._status.change(phase=Phase.RUNNING, rounds_finished=first_round, max_rounds=max_rounds)

    def round_started(self, round: Round) -> None:
        self._status.change(round=round.number, stage=0, members=tuple(round.members))

    def stage_closed(self, round: Round, stage: int, collected: Collected) -> None:
        self._status.change(
            stage=stage,
            members=collected.members,
            missing=collected.missing,
            alone=collected.closed_by is ClosedBy.ALONE,
        )

    def round_finished(self, report: RoundReport, state: GameState, rewards: Rewards) -> None:
        self._status.change(
            rounds_finished=report.round + 1, reward=finite(report.reward), round_finished=time.time(), peer=report.peer
        )

    def game_finished(self, rounds: int) -> None:
        current = self._status.current
        done = rounds >= current.max_rounds and current.phase is not Phase.STOPPING
        self._status.change(phase=Phase.FINISHED if done else Phase.STOPPING)


def finite(value: float) -> float | None:
    """The value, or None for NaN and infinities, which JSON does not have."""
    return value if value - value == 0 else None


def first_of(metrics: Mapping[str, float], *names: str) -> float | None:
    """The first of the named metrics that is there and finite."""
    for name in names:
        if (value := metrics.get(name)) is not None and finite(value) is not None:
            return value
    return None
