"""The torch.distributed backend: a closed world of peers over gloo.

Every peer has a seat, the seats are fixed for the run, and they meet at a TCPStore that peer 0 hosts (`world`). Each
two of them are a process group of their own (`gloo`, `neighbour`), not all of them one: a group with a dead rank is of
no use to the others, and a pair is made again when one of its two was started anew. Everything above the bytes is the
same agent as over libp2p: membership, quorum, deadline, signatures.

Only bytes that lie in the host's memory travel here, so that NCCL, which moves tensors between GPUs, has nothing to do;
ranks of one peer use it (`runtime.ranks`). Neither gloo nor the store encrypts or asks who calls: this is for a network
whose machines trust one another. Invariants: as of `Transport`; no object is pickled; when peer 0 is gone for good
every call that waits for others ends with `Temporary`, as a world that is started again resumes exactly; after `leave`
no thread of ours is left.
"""

from __future__ import annotations

import asyncio
import contextlib
import struct
import time
from collections.abc import Callable, Collection, Sequence
from pathlib import Path

from swarmgame.errors import Temporary
from swarmgame.game.protocol import Collected, CollectPolicy, Member
from swarmgame.game.state import PeerId
from swarmgame.swarm.blocking import BlockingCommunication, EventLoopThread
from swarmgame.swarm.clock import RealClock
from swarmgame.swarm.identity import Identity, verify
from swarmgame.swarm.node import SwarmNode
from swarmgame.swarm.settings import SwarmSettings
from swarmgame.swarm.transports.base import CALL_BYTES, Handlers, Oversized, Traffic, Unreachable
from swarmgame.swarm.transports.gloo import Frame, Kind, device_of
from swarmgame.swarm.transports.neighbour import FETCH_BYTES, NAME_BYTES, Neighbour
from swarmgame.swarm.transports.world import LOST_SECONDS, Place, World

MEET_SECONDS = 60.0
_CLOSE_SECONDS = 5.0
_MOMENT = 1.0
_WANTED = struct.Struct(f">{NAME_BYTES}sQ")


class TorchDistributedTransport:
    """One seat, and its pairs with all others; see `Transport`."""

    def __init__(
        self,
        run: str,
        identity: Identity,
        place: Place,
        *,
        meet_seconds: float = MEET_SECONDS,
        lost_seconds: float = LOST_SECONDS,
    ) -> None:
        self.peer = identity.peer
        self._meet_seconds = meet_seconds
        self._identity = identity
        self._world = World(run, place, identity.peer, calm=self._calm, seen=self._saw, lost_seconds=lost_seconds)
        self._neighbours: tuple[Neighbour, ...] = ()
        self._handlers: Handlers | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._seen = asyncio.Event()
        self._traffic = Traffic()

    @property
    def traffic(self) -> Traffic:
        return self._traffic

    @property
    def lost(self) -> str:
        """Why nothing can go on here, as a sentence; empty while it can."""
        return self._world.lost

    async def start(self, handlers: Handlers) -> None:
        """See `Transport.start`. The others need not be there, but the store must: without it we would be a swarm of
        one.
        """
        self._handlers, self._loop = handlers, asyncio.get_running_loop()
        place = self._world.place
        device = device_of(loopback=place.loopback)
        others = [index for index in range(place.size) if index != place.index]
        self._neighbours = tuple(
            Neighbour(index, self._world, self._identity, device, self._answer) for index in others
        )
        self._world.open()
        for neighbour in self._neighbours:
            neighbour.start()
        try:
            async with asyncio.timeout(self._meet_seconds):
                await self._seen.wait()
        except TimeoutError as error:
            where = f"{place.host}:{place.port}"
            raise Temporary(
                f"the store at {where}, which peer 0 hosts, did not answer within {self._meet_seconds:g} s"
            ) from error

    async def close(self) -> None:
        for neighbour in self._neighbours:
            neighbour.part()
        await asyncio.to_thread(self._end, time.monotonic() + _CLOSE_SECONDS)
        self._neighbours = ()  # and with them gloo's device and its thread, before the process ends

    def _end(self, deadline: float) -> None:
        self._world.close(deadline)
        for neighbour in self._neighbours:
            neighbour.join(deadline - _CLOSE_SECONDS / 2)
        for neighbour in self._neighbours:
            neighbour.break_off()
            neighbour.join(deadline)

    def _calm(self) -> bool:
        return all(neighbour.peer is not None for neighbour in self._neighbours)

    def _saw(self) -> None:
        """The store has been read; on the world's thread."""
        for neighbour in self._neighbours:
            neighbour.look()
        assert self._loop is not None
        with contextlib.suppress(RuntimeError):  # the loop is closed, and nobody waits
            self._loop.call_soon_threadsafe(self._seen.set)

    # ── who is there
    def addresses(self) -> tuple[str, ...]:
        """None: whoever has a seat knows the store."""
        return ()

    async def connect_initial_peers(self) -> Sequence[PeerId]:
        """See `Transport.bootstrap`: those who have taken their seats, as far as they can be met in a moment."""
        there = [neighbour for neighbour in self._neighbours if self._world.seats[neighbour.index] is not None]
        await asyncio.gather(*(neighbour.paired(_MOMENT) for neighbour in there), return_exceptions=True)
        return [neighbour.peer for neighbour in there if neighbour.peer is not None]

    async def ping_initial_peer(self, confirmed: Collection[PeerId]) -> None:
        """All who have a seat are looked for all the time."""

    async def connect(self, peer: PeerId, addresses: Sequence[str], seconds: float) -> None:
        await self._neighbour(peer).paired(seconds)

    async def advertise(self, heartbeat: bytes, expires: float) -> None:
        """See `Transport.advertise`. Also told to all with whom we are paired: the store may be away, and is not
        missed.
        """
        self._world.advertise(heartbeat)
        for neighbour in self._neighbours:
            with contextlib.suppress(Unreachable):
                neighbour.say(Kind.HEARTBEAT, 0, heartbeat)
                self._traffic.sent(len(heartbeat))

    async def discover(self, *, thorough: bool = False) -> Sequence[bytes]:
        self._world.look()
        return [
            *self._world.heartbeats,
            *(neighbour.heartbeat for neighbour in self._neighbours if neighbour.heartbeat),
        ]

    def _neighbour(self, peer: PeerId) -> Neighbour:
        seats = self._world.seats
        for neighbour in self._neighbours:
            seat = seats[neighbour.index]
            if neighbour.peer == peer or (seat is not None and seat.peer == peer):
                return neighbour
        raise Unreachable(f"{peer} has no seat in this world")

    # ── calls and bodies
    async def call(self, peer: PeerId, message: bytes, seconds: float) -> bytes:
        answer = await self._ask(peer, Kind.CALL, message, CALL_BYTES, seconds)
        return answer.payload

    async def fetch(self, peer: PeerId, name: bytes, limit: int, seconds: float) -> bytes | None:
        answer = await self._ask(peer, Kind.FETCH, _WANTED.pack(name, limit), limit, seconds)
        return answer.payload if answer.kind is Kind.BODY else None

    async def _ask(self, peer: PeerId, kind: Kind, payload: bytes, limit: int, seconds: float) -> Frame:
        neighbour = self._neighbour(peer)
        self._traffic.sent(len(payload))
        answer = await neighbour.ask(kind, payload, limit, seconds)
        self._traffic.received(answer.size)
        if answer.oversized or answer.kind is Kind.OVERSIZED:
            raise Oversized(peer)
        return answer

    def _answer(self, neighbour: Neighbour, frame: Frame) -> None:
        """Answers a request, or keeps a heartbeat; on the loop."""
        if neighbour.peer is None or self._handlers is None:
            return
        self._traffic.received(frame.size)
        if frame.kind is Kind.HEARTBEAT:
            neighbour.heartbeat = b"" if frame.oversized else frame.payload
            return
        kind, payload = Kind.ABSENT, b""
        if frame.kind is Kind.CALL:
            kind, payload = Kind.ANSWER, self._handlers.call(neighbour.peer, frame.payload)
        elif len(frame.payload) == FETCH_BYTES:
            name, limit = _WANTED.unpack(frame.payload)
            body = self._handlers.body(name)
            if body is not None:
                kind, payload = (Kind.BODY, body) if len(body) <= limit else (Kind.OVERSIZED, b"")
        self._traffic.sent(len(payload))
        try:
            neighbour.say(kind, frame.number, payload)
        except Unreachable:
            return  # who does not hear an answer asks again


class TorchDistributedCommunication(BlockingCommunication):
    """One peer of a closed world; see `CommunicationManager`.

    Args:
        run: name of the run; it keeps its keys in the store apart from those of others.
        identity: key file; made when there is none.
        place: our seat, and where the world meets.
        settings: how the agent behaves.
        meet_seconds: how long peer 0 may take to open the store.
        lost_seconds: how long it may be away later, before this world is over.

    Raises:
        BadData: the key file is not one.
    """

    def __init__(
        self,
        run: str,
        identity: Path,
        place: Place,
        *,
        settings: SwarmSettings | None = None,
        meet_seconds: float = MEET_SECONDS,
        lost_seconds: float = LOST_SECONDS,
    ) -> None:
        key = Identity.load_or_create(identity)
        self._transport = TorchDistributedTransport(
            run, key, place, meet_seconds=meet_seconds, lost_seconds=lost_seconds
        )
        node = SwarmNode(run, key.peer, key.sign, verify, self._transport, RealClock(), settings)
        super().__init__(node, EventLoopThread(f"exchange-{key.peer[-6:]}"), own_loop=True)

    @property
    def traffic(self) -> Traffic:
        """Bytes and messages since the start; the store's not among them."""
        return self._transport.traffic

    @property
    def addresses(self) -> tuple[str, ...]:
        """None: nobody from outside can join."""
        return self._transport.addresses()

    def membership(self) -> tuple[Member, ...]:
        """See `CommunicationManager.membership`.

        Raises:
            Temporary: the world is over.
        """
        self._go_on()
        return super().membership()

    def collect(
        self, round: int, stage: int, policy: CollectPolicy, *, stopped: Callable[[], bool] = lambda: False
    ) -> Collected:
        """See `CommunicationManager.collect`.

        Raises:
            Temporary: the world is over.
        """
        collected = super().collect(round, stage, policy, stopped=lambda: stopped() or bool(self._transport.lost))
        self._go_on()
        return collected

    def _go_on(self) -> None:
        if self._transport.lost:
            raise Temporary(self._transport.lost)
