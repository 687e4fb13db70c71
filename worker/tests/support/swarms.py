"""Swarms for tests: in memory with virtual time, over libp2p, over torch.distributed."""

from __future__ import annotations

import socket
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from hashlib import sha256
from pathlib import Path
from typing import Any, Protocol

import msgpack

from swarmgame.game.protocol import Collected, CollectPolicy, CommunicationManager
from swarmgame.game.state import Contribution, PeerId
from swarmgame.swarm.blocking import BlockingCommunication, EventLoopThread
from swarmgame.swarm.codec import encode
from swarmgame.swarm.identity import Identity
from swarmgame.swarm.messages import make_announcement, make_index
from swarmgame.swarm.network_options import NetworkOptions
from swarmgame.swarm.settings import SwarmSettings
from swarmgame.swarm.transport import Handlers, Transport
from swarmgame.swarm.transports.memory import MemoryHub
from swarmgame.swarm.transports.rank_group import RankAddress
from swarmgame.swarm.transports.torch_distributed import TorchDistributedCommunication

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


class FixedSwarm(Protocol):
    """A swarm whose peers are known before they join."""

    deadline: float
    """Stage deadline in seconds, for tests that let it pass."""

    def group(self, *names: str, **settings: object) -> Sequence[Any]:
        """Return peers that have joined and know each other."""
        ...

    def begin(self, peer: CommunicationManager, round: int, stage: int, policy: CollectPolicy) -> Future[Collected]:
        """Start a collect in another thread."""
        ...

    def until(self, condition: Callable[[], bool], seconds: float = 20.0) -> None:
        """Let time pass until a condition is met."""
        ...

    def pass_time(self, seconds: float) -> None: ...
    def close(self) -> None: ...


class Swarm(FixedSwarm, Protocol):
    """A swarm that peers join one after another, and where a peer may break the protocol."""

    def peer(
        self, name: str, *, min_replicas: int = 1, join: bool = True, **settings: object
    ) -> BlockingCommunication: ...
    def rogue(self, name: str) -> RoguePeer: ...


class OpenSwarm:
    """Peers that join one after another."""

    def group(self: Swarm, *names: str, **settings: object) -> Sequence[BlockingCommunication]:
        peers = [self.peer(name, min_replicas=count, **settings) for count, name in enumerate(names, 1)]
        self.until(lambda: all(len(peer.membership()) == len(names) for peer in peers))
        return peers


class MemorySwarm(OpenSwarm):
    deadline = 10.0

    def __init__(self) -> None:
        self.hub = MemoryHub(RUN, virtual=True)
        self.pool = ThreadPoolExecutor(8)
        self.peers: list[Any] = []

    def peer(self, name: str, *, min_replicas: int = 1, join: bool = True, **settings: object) -> BlockingCommunication:
        made = self.hub.communication(name, SwarmSettings(heartbeat_seconds=5.0, **settings))  # type: ignore[arg-type]
        self.peers.append(made)
        if join:
            made.join(min_replicas=min_replicas)
        return made

    def rogue(self, name: str) -> RoguePeer:
        return RoguePeer(self.hub.identity(name), name, self.hub.transport(name), self.hub.thread)

    def begin(self, peer: CommunicationManager, round: int, stage: int, policy: CollectPolicy) -> Future[Collected]:
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
        self.reopen()
        self.rogues: list[RoguePeer] = []

    def reopen(self) -> None:
        """Begin with new peers, also after `close`."""
        self.pool = ThreadPoolExecutor(8)
        self.peers: list[Any] = []

    def begin(self, peer: CommunicationManager, round: int, stage: int, policy: CollectPolicy) -> Future[Collected]:
        return self.pool.submit(peer.collect, round, stage, policy)

    def until(self, condition: Callable[[], bool], seconds: float = 60.0) -> None:
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


class Libp2pSwarm(OpenSwarm, RealTimeSwarm):
    host = "127.0.0.1"
    """Where the next peer listens."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.known: tuple[str, ...] = ()

    def group(self, *names: str, **settings: object) -> Sequence[BlockingCommunication]:
        peers = super().group(*names, **settings)
        self.until(lambda: all_count(peers))
        return peers

    def peer(self, name: str, *, min_replicas: int = 1, join: bool = True, **settings: object) -> BlockingCommunication:
        from swarmgame.swarm.transports.libp2p import HivemindCommunication

        # On a busy machine a peer may not run for seconds: it stays a member for ten.
        how = SwarmSettings(**{"heartbeat_seconds": 1.0, "lifetimes": 10.0} | settings)  # type: ignore[arg-type]
        network = NetworkOptions(self.folder / f"{name}.key", self.host, initial_peers=self.known)
        made = HivemindCommunication(RUN, network, settings=how)
        self.peers.append(made)
        if join:
            made.join(min_replicas=min_replicas, timeout_seconds=60.0)
            self.known = (*self.known, *made.addresses[:1])
        return made

    def rogue(self, name: str) -> RoguePeer:
        from swarmgame.swarm.transports.libp2p import Libp2pTransport

        path = self.folder / f"{name}.key"
        identity = Identity.load_or_create(path)
        network = NetworkOptions(path, "127.0.0.1", initial_peers=self.known)
        made = RoguePeer(identity, identity.peer, Libp2pTransport(RUN, identity.peer, network), EventLoopThread(name))
        self.rogues.append(made)
        return made


def all_count(peers: Sequence[CommunicationManager]) -> bool:
    """Return whether every one of these peers counts all of them: a member counts later, when its host is known."""
    members = [peer.membership() for peer in peers]
    return all(len(each) == len(peers) and all(member.weight > 0 for member in each) for each in members)


class RankGroupSwarm(RealTimeSwarm):
    """Peers over torch.distributed. Their number is fixed, so that all of them join at once."""

    host = "127.0.0.1"
    """Of the store."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.port = free_port()

    def communication(self, name: str, rank: int, size: int, **settings: object) -> TorchDistributedCommunication:
        """Return a peer that has not joined yet."""
        address = RankAddress(rank, size, self.host, self.port)
        how = SwarmSettings(**settings)  # type: ignore[arg-type]
        made = TorchDistributedCommunication(RUN, self.folder / f"{name}.key", address, settings=how)
        self.peers.append(made)
        return made

    def group(self, *names: str, **settings: object) -> list[TorchDistributedCommunication]:
        peers = [self.communication(name, rank, len(names), **settings) for rank, name in enumerate(names)]
        self.join(peers)
        return peers

    def join(self, peers: Sequence[TorchDistributedCommunication]) -> None:
        for joining in [self.pool.submit(peer.join, timeout_seconds=60.0) for peer in peers]:
            joining.result(120)

    def close(self) -> None:
        leaving = [self.pool.submit(peer.leave) for peer in self.peers]
        self.pool.shutdown()
        for each in leaving:
            each.result()


def free_port() -> int:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
