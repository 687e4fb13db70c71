"""Three ways to have a swarm in a test: in memory with virtual time, over libp2p, over gloo. The contract suite runs on
all of them.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from hashlib import sha256
from pathlib import Path
from typing import Protocol

import msgpack

from swarmgame.game.protocol import Collected, CollectPolicy
from swarmgame.game.state import Contribution, PeerId
from swarmgame.swarm.blocking import BlockingCommunication, EventLoopThread
from swarmgame.swarm.codec import encode
from swarmgame.swarm.identity import Identity
from swarmgame.swarm.messages import make_announcement, make_index
from swarmgame.swarm.settings import SwarmSettings
from swarmgame.swarm.transports.base import Handlers, Transport
from swarmgame.swarm.transports.memory import MemoryHub
from swarmgame.swarm.transports.torch_distributed import TorchDistributedCommunication, TorchDistributedTransport
from swarmgame.swarm.transports.world import LOST_SECONDS, Place

RUN = "contract"


class RoguePeer:
    """A peer that sends and serves whatever a test needs, over a transport of its own."""

    def __init__(self, identity: Identity, peer: PeerId, transport: Transport, thread: EventLoopThread) -> None:
        self.identity, self.peer, self.transport, self.thread = identity, peer, transport, thread
        self.bodies: dict[bytes, bytes] = {}

        def silent(sender: PeerId, message: bytes) -> bytes:
            return b""

        self.thread.run(self.transport.start(Handlers(call=silent, body=self.bodies.get)))
        self.thread.run(self.transport.connect_initial_peers())  # type: ignore[arg-type]

    def send(self, peer: PeerId, message: bytes) -> bytes:
        return self.thread.run(self.transport.call(peer, message, 5.0))

    def send_announcement(self, peer: PeerId, announcement: bytes, bodies: Sequence[bytes] = ()) -> None:
        self.send(peer, b"A" + msgpack.packb([announcement, list(bodies)]))

    def announcement(
        self, contribution: Contribution, *, run: str = RUN, signer: Identity | None = None, serve: bool = True
    ) -> bytes:
        """Return a valid announcement, unless another run or signer is given; its bodies are served."""
        shards = encode(contribution, run)
        index = make_index(contribution, shards)
        if serve:
            self.bodies.update({shard.name: shard.data for shard in shards})
        sign = (signer or self.identity).sign
        return make_announcement(
            run, contribution.peer, contribution.round, contribution.stage, index, 2_000_000_000, sign
        ).message

    def announcement_of(
        self, contribution: Contribution, body: bytes, *, name: bytes | None = None, size: int | None = None
    ) -> bytes:
        """Return an announcement of one shard that holds these bytes."""
        name = name or sha256(body).digest()
        self.bodies[name] = body
        row = [name, len(body) if size is None else size, len(contribution.groups), 0, None, 1]
        index = msgpack.packb([0, [row]])
        return make_announcement(
            RUN, contribution.peer, contribution.round, contribution.stage, index, 2_000_000_000, self.identity.sign
        ).message

    def close(self) -> None:
        self.thread.run(self.transport.close())


class Swarm(Protocol):
    """A swarm as a contract test uses it."""

    deadline: float
    """Stage deadline in seconds, for tests that let it pass."""

    def peer(self, name: str, *, at_least: int = 1, join: bool = True, **settings: object) -> BlockingCommunication: ...
    def rogue(self, name: str) -> RoguePeer: ...
    def begin(self, peer: BlockingCommunication, round: int, stage: int, policy: CollectPolicy) -> Future[Collected]:
        """Start a collect in another thread."""
        ...

    def until(self, condition: Callable[[], bool], seconds: float = 20.0) -> None:
        """Let time pass until a condition is met."""
        ...

    def pass_time(self, seconds: float) -> None: ...
    def close(self) -> None: ...


class MemorySwarm:
    deadline = 10.0

    def __init__(self) -> None:
        self.hub = MemoryHub(RUN, virtual=True)
        self.pool = ThreadPoolExecutor(8)
        self.peers: list[BlockingCommunication] = []

    def peer(self, name: str, *, at_least: int = 1, join: bool = True, **settings: object) -> BlockingCommunication:
        made = self.hub.communication(name, SwarmSettings(heartbeat_seconds=5.0, **settings))  # type: ignore[arg-type]
        self.peers.append(made)
        if join:
            made.join(at_least=at_least)
        return made

    def rogue(self, name: str) -> RoguePeer:
        return RoguePeer(self.hub.identity(name), name, self.hub.transport(name), self.hub.thread)

    def begin(self, peer: BlockingCommunication, round: int, stage: int, policy: CollectPolicy) -> Future[Collected]:
        before = self.hub.collects
        future = self.pool.submit(peer.collect, round, stage, policy)
        self.hub.wait_for_collects(before + 1)
        return future

    def until(self, condition: Callable[[], bool], seconds: float = 20.0) -> None:
        for _ in range(int(seconds * 2)):
            if condition():
                return
            self.hub.advance(0.5)
        raise AssertionError("the condition was not met in time")

    def pass_time(self, seconds: float) -> None:
        self.hub.advance(seconds)

    def close(self) -> None:
        for peer in self.peers:
            peer.leave()
        self.hub.close()
        self.pool.shutdown()


class RealTimeSwarm:
    """A swarm with real sockets."""

    deadline = 1.0

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.pool = ThreadPoolExecutor(8)
        self.peers: list[BlockingCommunication] = []
        self.rogues: list[RoguePeer] = []

    def begin(self, peer: BlockingCommunication, round: int, stage: int, policy: CollectPolicy) -> Future[Collected]:
        return self.pool.submit(peer.collect, round, stage, policy)

    def until(self, condition: Callable[[], bool], seconds: float = 20.0) -> None:
        import threading
        import time

        deadline, pause = time.monotonic() + seconds, threading.Event()
        while not condition():
            assert time.monotonic() < deadline, "the condition was not met in time"
            pause.wait(0.05)

    def pass_time(self, seconds: float) -> None:
        """Time passes by itself."""

    def close(self) -> None:
        for rogue in self.rogues:
            rogue.close()
            rogue.thread.close()
        for peer in self.peers:
            peer.leave()
        self.pool.shutdown()


class Libp2pSwarm(RealTimeSwarm):
    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.known: tuple[str, ...] = ()

    def peer(self, name: str, *, at_least: int = 1, join: bool = True, **settings: object) -> BlockingCommunication:
        from swarmgame.swarm.transports.libp2p import HivemindCommunication

        how = SwarmSettings(**{"heartbeat_seconds": 1.0} | settings)  # type: ignore[arg-type]
        made = HivemindCommunication(RUN, self.folder / f"{name}.key", 0, self.known, host="127.0.0.1", settings=how)
        self.peers.append(made)
        if join:
            made.join(at_least=at_least, timeout_seconds=20.0)
            self.known = (*self.known, *made.addresses[:1])
        return made

    def rogue(self, name: str) -> RoguePeer:
        from swarmgame.swarm.transports.libp2p import Libp2pOptions, Libp2pTransport

        path = self.folder / f"{name}.key"
        identity = Identity.load_or_create(path)
        network = Libp2pOptions(host="127.0.0.1", initial_peers=self.known)
        made = RoguePeer(
            identity, identity.peer, Libp2pTransport(RUN, identity.peer, path, network), EventLoopThread(name)
        )
        self.rogues.append(made)
        return made


class GlooSwarm(RealTimeSwarm):
    """A closed world of four seats, given in the order of asking; the first one hosts the store. A rogue has a seat
    too: there are no strangers, only members that do not keep to the rules."""

    size = 4

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.port = free_port()
        self.seats: dict[str, int] = {}

    def place(self, name: str) -> Place:
        return Place(self.seats.setdefault(name, len(self.seats)), self.size, "127.0.0.1", self.port)

    def peer(
        self, name: str, *, at_least: int = 1, join: bool = True, lost_seconds: float = LOST_SECONDS, **settings: object
    ) -> TorchDistributedCommunication:
        how = SwarmSettings(**{"heartbeat_seconds": 1.0} | settings)  # type: ignore[arg-type]
        key = self.folder / f"{name}.key"
        made = TorchDistributedCommunication(RUN, key, self.place(name), settings=how, lost_seconds=lost_seconds)
        self.peers.append(made)
        if join:
            made.join(at_least=at_least, timeout_seconds=20.0)
        return made

    def rogue(self, name: str) -> RoguePeer:
        identity = Identity.load_or_create(self.folder / f"{name}.key")
        made = RoguePeer(
            identity, identity.peer, TorchDistributedTransport(RUN, identity, self.place(name)), EventLoopThread(name)
        )
        self.rogues.append(made)
        return made


def free_port() -> int:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
