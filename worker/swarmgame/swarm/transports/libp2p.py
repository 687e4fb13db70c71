"""The libp2p backend: hivemind's p2p daemon and its DHT node, on our own asyncio loop.

`hivemind.DHT` is not used: its forked process talks through a pipe that is read without blocking, and hangs above
16,384 bytes (hivemind 1.1.12). Small messages are unary calls. Bodies go over binary streams that `bodies` reads:
hivemind's reader trusts an 8-byte length from the wire, and its unary answers hang the caller above 4 MiB. The DHT
holds heartbeats only.

The daemon ends with its control connection, so it does not outlive us even after kill -9. Its socket file does; the
next start removes such files. A call that is given up does no harm to other calls.
"""

from __future__ import annotations

import asyncio
import contextlib
import glob
import logging
import os
import random
import secrets
import socket
import time
from collections.abc import Awaitable, Collection, Sequence
from typing import TypeVar

from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from google.protobuf.wrappers_pb2 import BytesValue  # type: ignore[import-untyped]
from hivemind.dht.node import DHTNode
from hivemind.dht.routing import DHTID
from hivemind.p2p import P2P, P2PDaemonError, P2PHandlerError, PeerID
from hivemind.p2p.p2p_daemon_bindings.datastructures import StreamInfo
from hivemind.utils.multiaddr import Multiaddr

from swarmgame.errors import Temporary
from swarmgame.game.state import PeerId
from swarmgame.swarm.blocking import BlockingCommunication, EventLoopThread
from swarmgame.swarm.bodies import BodyServer, request_body
from swarmgame.swarm.clock import RealClock
from swarmgame.swarm.identity import Identity, host_of, listen_addresses, split_address, verify
from swarmgame.swarm.messages import HEARTBEAT_BYTES, parse_heartbeat
from swarmgame.swarm.network_options import NetworkOptions
from swarmgame.swarm.node import SwarmNode
from swarmgame.swarm.settings import SwarmSettings
from swarmgame.swarm.transport import CALL_BYTES, Handlers, Oversized, Traffic, Unreachable, Unreadable
from swarmgame.swarm.transports.bounded_directory import bound_directory
from swarmgame.swarm.transports.hivemind_patches import count_traffic, patch_hivemind_ipc
from swarmgame.swarm.transports.remote_hosts import RemoteHosts
from swarmgame_common.sockets import listening_socket

logger = logging.getLogger(__name__)

T = TypeVar("T")

_START_ATTEMPTS = 4
_START_SECONDS = 30.0
_BUCKET, _REPLICAS = 5, 3
"""Heartbeats need neither wide searches nor many copies, whose cost would grow with the swarm."""
_DIRECTORY_SECONDS = 4.0
_CONNECT_SECONDS = 5.0
_LIST_SECONDS = 2.0
_GONE = (P2PDaemonError, P2PHandlerError, OSError, EOFError, TimeoutError)
_STALE_SOCKET_SECONDS = 60.0


class Libp2pTransport:
    """One p2p daemon; see `Transport`."""

    def __init__(self, run: str, peer: PeerId, network: NetworkOptions) -> None:
        self.run, self.peer = run, peer
        self.network = network
        self._initial = {split_address(address)[1]: split_address(address)[0] for address in network.initial_peers}
        self._initial.pop(peer, None)
        self._directory = f"swarmgame/1/{run}/members"
        # Not the peer's id alone: of two processes with one key each would overwrite the other's heartbeat.
        self._place = f"{peer}/{secrets.token_hex(4)}"
        self._call_name, self._body_name = f"swarmgame/1/{run}/call", f"swarmgame/1/{run}/body"
        self._traffic = Traffic()
        self._p2p: P2P | None = None
        self._node: DHTNode | None = None
        self._handlers: Handlers | None = None
        self._serving: BodyServer | None = None
        self._addresses: tuple[str, ...] = network.announce
        self._hosts = RemoteHosts(self._list_connections, (*_GONE, Unreachable))

    @property
    def traffic(self) -> Traffic:
        return self._traffic

    # ── starting and stopping
    async def start(self, handlers: Handlers) -> None:
        """See `Transport.start`. The daemon is started up to four times, with growing pauses."""
        self._handlers = handlers
        _sweep_sockets()
        pause = 0.5
        for attempt in range(1, _START_ATTEMPTS + 1):
            try:
                _check_port(self.network.host, self.network.port)
                self._p2p = await self._daemon()
                break
            except (P2PDaemonError, OSError) as error:
                if attempt == _START_ATTEMPTS:
                    raise Temporary(f"the p2p daemon does not start on port {self.network.port}: {error}") from error
                logger.warning("the p2p daemon did not start (attempt %d): %s", attempt, error)
                await asyncio.sleep(pause)
                pause *= 2
        assert self._p2p is not None
        if self._p2p.peer_id.to_base58() != self.peer:
            raise Temporary(f"the p2p daemon has the peer id {self._p2p.peer_id.to_base58()}; expected {self.peer}")
        count_traffic(self._p2p, self._traffic, handlers.gate)
        await self._p2p._client.control.add_unary_handler(self._call_name, self._answer)
        self._serving = BodyServer(handlers.body, self._traffic, handlers.gate)
        await self._p2p.add_binary_stream_handler(self._body_name, self._serve)
        self._node = await DHTNode.create(
            p2p=self._p2p,
            bucket_size=_BUCKET,
            num_replicas=_REPLICAS,
            wait_timeout=3.0,
            cache_locally=False,
            cache_on_store=False,
            cache_nearest=0,
            strict=False,
        )
        bound_directory(
            self._node,
            DHTID.generate(source=self._directory),
            lambda message: parse_heartbeat(message, self.run, verify),
            lambda: handlers.gate.refuse("directory-refused") if handlers.gate is not None else None,
        )
        if not self._addresses:
            visible = await self._p2p.get_visible_maddrs()
            self._addresses = tuple(split_address(str(address))[0] for address in visible)

    async def _daemon(self) -> P2P:
        network = self.network
        patch_hivemind_ipc()
        return await P2P.create(
            identity_path=str(network.identity),
            # The check would parse the key as RSA.
            check_if_identity_free=False,
            host_maddrs=listen_addresses(network.port, network.host),
            announce_maddrs=list(network.announce) or None,
            use_relay=False,
            nat_port_map=False,
            auto_nat=False,
            startup_timeout=_START_SECONDS,
        )

    async def close(self) -> None:
        node, self._node = self._node, None
        p2p, self._p2p = self._p2p, None
        if node is not None:
            with contextlib.suppress(*_GONE):
                await asyncio.wait_for(node.shutdown(), 2.0)
        if p2p is None:
            return
        child = p2p._child
        try:
            await asyncio.wait_for(p2p.shutdown(), 3.0)
        except TimeoutError:
            if child is not None and child.returncode is None:
                child.kill()
                await child.wait()

    def addresses(self) -> tuple[str, ...]:
        return self._addresses

    def remote_address(self, peer: PeerId) -> str | None:
        return self._hosts.host(peer)

    async def _list_connections(self) -> list[tuple[PeerId, str]]:
        peers = await asyncio.wait_for(self._running(self._p2p).list_peers(), _LIST_SECONDS)
        return [(peer.peer_id.to_base58(), str(address)) for peer in peers for address in peer.addrs]

    @property
    def failure(self) -> str:
        """How the daemon ended, as a sentence; empty while it runs."""
        child = self._p2p._child if self._p2p is not None else None
        if child is None or child.returncode is None:
            return ""
        return f"the p2p daemon ended with exit code {child.returncode}; start this process again, and it goes on"

    # ── calls
    async def connect_initial_peers(self) -> Sequence[PeerId]:
        answered = await asyncio.gather(
            *(self._connect_initial(peer, address) for peer, address in self._initial.items())
        )
        return [peer for peer in answered if peer is not None]

    async def ping_initial_peer(self, known: Collection[PeerId]) -> None:
        unknown = [peer for peer in self._initial if peer not in known]
        if unknown:
            peer = random.choice(unknown)
            with contextlib.suppress(Unreachable):
                await self._connect_initial(peer, self._initial[peer])

    async def _connect_initial(self, peer: PeerId, address: str) -> PeerId | None:
        try:
            await self.connect(peer, [address], _CONNECT_SECONDS)
        except Unreachable:
            return None
        node = self._running(self._node)
        # A ping adds each to the other's routing table.
        return peer if await node.protocol.call_ping(PeerID.from_base58(peer)) is not None else None

    async def connect(self, peer: PeerId, addresses: Sequence[str], seconds: float) -> None:
        p2p = self._running(self._p2p)
        try:
            multiaddrs = [Multiaddr(address) for address in addresses]
        except ValueError as error:
            raise Unreachable(peer) from error
        await _in_time(p2p._client.connect(PeerID.from_base58(peer), multiaddrs), peer, seconds)

    async def call(self, peer: PeerId, message: bytes, seconds: float) -> bytes:
        p2p = self._running(self._p2p)
        try:
            answer = await _in_time(
                p2p.call_protobuf_handler(
                    PeerID.from_base58(peer), self._call_name, BytesValue(value=message), BytesValue
                ),
                peer,
                seconds,
            )
        except DecodeError as error:
            raise Unreadable(peer) from error
        if len(answer.value) > CALL_BYTES:
            raise Oversized(peer)
        await self._hosts.meet(peer)
        return bytes(answer.value)

    async def _answer(self, message: bytes, sender: PeerID) -> bytes:
        assert self._handlers is not None
        await self._hosts.meet(sender.to_base58())
        answer = self._handlers.call(sender.to_base58(), BytesValue.FromString(message).value)
        packed: bytes = BytesValue(value=answer).SerializeToString()
        return packed

    # ── bodies
    async def fetch(self, peer: PeerId, name: bytes, limit: int, seconds: float) -> bytes | None:
        return await _in_time(self._fetch(peer, name, limit), peer, seconds)

    async def _fetch(self, peer: PeerId, name: bytes, limit: int) -> bytes | None:
        p2p = self._running(self._p2p)
        _, reader, writer = await p2p.call_binary_stream_handler(PeerID.from_base58(peer), self._body_name)
        return await request_body(reader, writer, name, limit, self._traffic)

    async def _serve(self, info: StreamInfo, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        assert self._serving is not None
        await self._serving.serve(info.peer_id.to_base58(), reader, writer, host_of(str(info.addr)))

    # ── the directory
    async def advertise(self, heartbeat: bytes, expires: float) -> None:
        node = self._node
        if node is not None:
            with contextlib.suppress(Unreachable):
                await _in_time(self._store(node, heartbeat, expires), self.peer, _DIRECTORY_SECONDS)

    async def _store(self, node: DHTNode, heartbeat: bytes, expires: float) -> None:
        """Store a heartbeat like `node.store`, but search for the nodes near the adjacent key, which has no value.

        A node that is searched for our own key answers with the complete directory, and the cost of a heartbeat would
        grow with the swarm.
        """
        key = DHTID.generate(source=self._directory)
        adjacent = DHTID(key ^ 1)
        nearest = list((await node.find_nearest_nodes([adjacent], k_nearest=_BUCKET))[adjacent].items())
        value = node.protocol.serializer.dumps(heartbeat)

        async def put(place: DHTID, holder: PeerID) -> bool:
            if place == node.node_id:
                node.protocol.storage.store(key, value, expires, subkey=self._place)
                return True
            return await node.protocol.call_store(holder, [key], [value], expires, subkeys=[self._place]) is not None

        stored = sum(await asyncio.gather(*(put(*replica) for replica in nearest[:_REPLICAS])))
        if stored < _REPLICAS:
            await asyncio.gather(*(put(*replica) for replica in nearest[_REPLICAS:]))

    async def discover(self, *, thorough: bool = False) -> Sequence[bytes]:
        node = self._node
        found = None
        if node is not None:
            with contextlib.suppress(Unreachable):
                # Replica by replica: each has the complete directory, and unless the search is thorough the first
                # answer ends it.
                search = node.get(self._directory, latest=thorough, num_workers=_REPLICAS if thorough else 1)
                found = await _in_time(search, self.peer, _DIRECTORY_SECONDS)
        if found is None or not isinstance(found.value, dict):
            return []
        values = [record.value for record in found.value.values() if isinstance(record.value, bytes)]
        return [value for value in values if len(value) <= HEARTBEAT_BYTES]

    # ── the daemon
    def _running(self, part: T | None) -> T:
        if part is None:
            raise Unreachable("the p2p daemon is not running")
        return part


class HivemindCommunication(BlockingCommunication):
    """One peer over libp2p; see `CommunicationManager`.

    After `leave`, also after a failed `join`, no daemon, thread or socket of ours is left.

    Args:
        run: name of the run; messages of other runs on the same network are ignored.
        network: its key file is created if there is none; initial peers that are offline do no harm.
        settings: how the node behaves.

    Raises:
        BadData: the key file is invalid.
        ValueError: an initial peer is not a dial address.
    """

    def __init__(self, run: str, network: NetworkOptions, *, settings: SwarmSettings | None = None) -> None:
        key = Identity.load_or_create(network.identity)
        self._transport = Libp2pTransport(run, key.peer, network)
        node = SwarmNode(run, key.peer, key.sign, verify, self._transport, RealClock(), settings)
        super().__init__(node, EventLoopThread(f"exchange-{key.peer[-6:]}"), own_loop=True)

    @property
    def traffic(self) -> Traffic:
        """Bytes and messages since the start, those of the DHT included."""
        return self._transport.traffic

    @property
    def addresses(self) -> tuple[str, ...]:
        """Addresses at which others reach us, with the peer id; known once joined."""
        return tuple(f"{address}/p2p/{self.peer}" for address in self._transport.addresses())


async def _in_time(work: Awaitable[T], peer: PeerId, seconds: float) -> T:
    """Return the result of work; raise `Unreachable` if the network fails or it takes longer."""
    try:
        async with asyncio.timeout(seconds):
            return await work
    except _GONE as error:
        raise Unreachable(f"{peer}: {type(error).__name__}: {error}") from error


def _check_port(host: str, port: int) -> None:
    """Raise OSError if the port is taken: the daemon shares ports silently (SO_REUSEPORT), and each of two peers would
    receive half of the calls.
    """
    if port:
        listening_socket(host, port).close()


def _sweep_sockets() -> None:
    """Remove socket files of daemons that were killed."""
    for path in glob.glob("/tmp/hivemind-p2p*.sock"):
        with contextlib.suppress(OSError):
            status = os.stat(path)
            if status.st_uid != os.getuid() or time.time() - status.st_mtime < _STALE_SOCKET_SECONDS:
                continue
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
                probe.settimeout(0.2)
                try:
                    probe.connect(path)
                except ConnectionRefusedError:
                    os.unlink(path)
