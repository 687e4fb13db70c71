"""Swarms in virtual time whose peers play rounds of a given length, and strangers that try to hold them up."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any, Protocol, TypeVar

from contributions import make_contribution
from swarms import RUN

from swarmgame.game.collected_log import CollectedLog
from swarmgame.game.present_round import present_round
from swarmgame.game.protocol import ClosedBy, Collected, CollectPolicy, Exchange
from swarmgame.swarm.clock import Clock
from swarmgame.swarm.identity import Identity
from swarmgame.swarm.messages import make_heartbeat
from swarmgame.swarm.node import SwarmNode
from swarmgame.swarm.settings import SwarmSettings
from swarmgame.swarm.stage_barrier import StageBarrier
from swarmgame.swarm.transport import Handlers
from swarmgame.swarm.transports.memory import MemoryHub, MemoryTransport

T = TypeVar("T")
S = TypeVar("S", bound="Closable")

MAX_ROUNDS = 100_000
DEADLINE = 120.0


class Closable(Protocol):
    """A swarm that ends."""

    def close(self) -> None: ...


@contextmanager
def making(kind: Callable[..., S]) -> Iterator[Callable[..., S]]:
    """Yield a function that makes swarms; all of them are closed at the end."""
    with ExitStack() as made:

        def make(**options: object) -> S:
            swarm = kind(**options)
            made.callback(swarm.close)
            return swarm

        yield make


@dataclass
class ShiftedClock:
    """A clock that shows another time than the hub's."""

    clock: Clock
    ahead: float = 0.0
    was_set: float = 0.0

    def now(self) -> float:
        return self.clock.now() + self.ahead

    def set_since(self) -> float:
        return self.was_set

    async def wait(self, event: asyncio.Event, seconds: float) -> None:
        await self.clock.wait(event, seconds)

    async def offload(self, work: Callable[[], T]) -> T:
        return await self.clock.offload(work)


@dataclass
class PacedPeer:
    """One peer that plays: it works, publishes and collects, and skips ahead as the game loop does.

    Args:
        work: seconds of a round, by its number.
        plays_until: the round from which on it only sends heartbeats.
        finished: when each round was over, in virtual seconds.
    """

    node: SwarmNode
    policy: CollectPolicy
    work: Callable[[int], float]
    plays_until: int = MAX_ROUNDS
    number: int = 0
    skipped: int = 0
    barrier: StageBarrier = field(init=False)
    log: CollectedLog = field(default_factory=lambda: CollectedLog(1))
    finished: list[float] = field(default_factory=list)
    collected: list[Collected] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.barrier = StageBarrier(self.node)

    @property
    def name(self) -> str:
        return self.node.peer

    @property
    def closed_by(self) -> list[ClosedBy]:
        return [collected.closed_by for collected in self.collected]

    @property
    def gaps(self) -> list[float]:
        """Seconds of each round but the first."""
        return [after - before for before, after in pairwise(self.finished)]

    @property
    def clock(self) -> ShiftedClock:
        """Its clock, which a test may set."""
        assert isinstance(self.node.clock, ShiftedClock)
        return self.node.clock

    @property
    def clock_error(self) -> float | None:
        """What it measured in its last stage."""
        error = self.collected[-1].clock_error
        return None if error is None else error.seconds

    def standing(self, peer: str) -> str:
        """Return what this peer knows of another one."""
        return str(self.node.members.counted.standing(peer))

    async def play(self, first_round: int | None = None) -> None:
        node, barrier = self.node, self.barrier
        present = present_round(node.members.members(node.clock.now()), node.peer)
        self.number = min(present or 0, MAX_ROUNDS - 1) if first_round is None else first_round
        while self.number < self.plays_until:
            present = present_round(node.members.members(node.clock.now()), node.peer)
            if present is not None and min(present, MAX_ROUNDS - 1) - self.number > self.policy.max_lag:
                present = present_round(node.members.members(node.clock.now()), node.peer, to_enter=True)
                self.number = min(present or 0, MAX_ROUNDS - 1)
                self.skipped += 1
            node.progress(self.number, 0)
            await node.clock.wait(asyncio.Event(), self.work(self.number))
            await node.publish(node.prepare(make_contribution(node.peer, self.number, groups=1, rollouts=1, tokens=1)))
            policy = replace(self.policy, collected=self.log.collected)
            collected = await barrier.collect(self.number, 0, policy, lambda: False)
            self.log.record(self.number, 0, collected.delivered)
            for each in collected.contributions:
                self.log.record(each.round, each.stage, [each.peer])
            self.collected.append(collected)
            self.finished.append(node.clock.now())
            self.number += 1


class PacedSwarm:
    """Peers in memory.

    Args:
        anchors: ids of all anchors; None: every peer is one, so that no defence distinguishes between them.
    """

    def __init__(
        self,
        *,
        anchors: Sequence[str] | None = (),
        quorum: float = 1.0,
        exchange: Exchange = Exchange.GATHER,
        external: int = 4,
        deadline: float = DEADLINE,
        max_rounds: int = MAX_ROUNDS,
        inline_bytes: int = 64 << 10,
    ) -> None:
        self.hub = MemoryHub(RUN, virtual=True)
        self.policy = CollectPolicy(
            exchange, quorum, deadline, external_groups=external, max_per_peer=1, max_staleness=1
        )
        self.settings = SwarmSettings(
            anchors=None if anchors is None else frozenset(anchors),
            max_rounds=max_rounds,
            keep_rounds=2,
            inline_bytes=inline_bytes,
        )
        self.peers: list[PacedPeer] = []
        self._playing: dict[str, Future[None]] = {}

    def add(
        self,
        *names: str,
        work: float | Callable[[int], float] = 1.0,
        plays_until: int = MAX_ROUNDS,
        ahead: float = 0.0,
        connect: Callable[[MemoryHub, str], MemoryTransport] = MemoryTransport,
    ) -> PacedPeer:
        """Let peers join, all of them before the first plays. Return the last.

        Args:
            ahead: seconds by which their clock is ahead of the others'.
        """
        joined = []
        for name in names:
            node = self._node(name, ahead, connect)
            self.hub.thread.run(node.join((), 1, 10.0))
            seconds = work if callable(work) else (lambda number, seconds=work: seconds)
            joined.append(PacedPeer(node, self.policy, seconds, plays_until))
        self.peers += joined
        for peer in joined:
            self._playing[peer.name] = self.hub.thread.submit(peer.play())
        return joined[-1]

    def _node(
        self, name: str, ahead: float = 0.0, connect: Callable[[MemoryHub, str], MemoryTransport] = MemoryTransport
    ) -> SwarmNode:
        identity = self.hub.identity(name)
        clock, transport = ShiftedClock(self.hub.clock, ahead), connect(self.hub, name)
        return SwarmNode(RUN, name, identity.sign, self.hub.verify, transport, clock, self.settings)

    def restart(self, peer: PacedPeer, *, away: float = 0.0, with_state: bool = True) -> None:
        """Kill a peer, and start it again with the state of a checkpoint that was made at that moment."""

        async def kill() -> Mapping[str, Any]:
            state = json.loads(json.dumps(peer.barrier.state_dict()))
            for task in peer.node._tasks:
                task.cancel()
            return state  # type: ignore[no-any-return]

        members = [member.peer for member in peer.node.members.members(self.hub.clock.now())]
        state = self.hub.thread.run(kill())
        self._playing[peer.name].cancel()
        self.hub.kill(peer.name)
        self.pass_time(away)
        peer.node = self._node(peer.name)
        peer.barrier = StageBarrier(peer.node)

        async def join() -> None:
            if with_state:
                peer.node.members.expect(members, self.hub.clock.now())
                peer.barrier.load_state_dict(state)
            await peer.node.join(members, 1, 10.0)
            if with_state:
                await peer.barrier.catch_up()

        self.hub.thread.run(join())
        self._playing[peer.name] = self.hub.thread.submit(peer.play(peer.number))

    def silent_keys(self, count: int, *, round: int = 0, name: str = "key") -> list[MemoryTransport]:
        """Let new keys greet every peer, and do nothing else."""
        made = []
        for number in range(count):
            peer = f"{name}-{number}"
            identity = self.hub.identity(peer)
            transport = self.hub.transport(peer)
            self.hub.thread.run(transport.start(Handlers(call=lambda sender, message: b"", body=lambda body: None)))
            self.greet(transport, identity, round)
            made.append(transport)
        return made

    def greet(self, transport: MemoryTransport, identity: Identity, round: int, *, peer: str = "") -> None:
        """Send a heartbeat to every peer, by default the sender's own."""
        expires = self.hub.clock.now() + 75.0
        message = make_heartbeat(RUN, peer or transport.peer, round, 0, expires, identity.sign).message
        for each in self.peers:
            self.hub.thread.run(transport.call(each.name, b"H" + message, 5.0))

    def pass_time(self, seconds: float) -> None:
        self.hub.advance(seconds)

    def rounds(self) -> list[int]:
        """Return how many rounds each peer has finished."""
        return [len(peer.finished) for peer in self.peers]

    def pace(self, seconds: float) -> float:
        """Return the rounds that the slowest peer finishes in that time."""
        before = self.rounds()
        self.pass_time(seconds)
        return min(after - was for was, after in zip(before, self.rounds(), strict=True))

    def close(self) -> None:
        self.hub.close()
