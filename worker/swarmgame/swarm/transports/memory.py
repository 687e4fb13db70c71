"""The memory backend: a swarm inside one process, for tests.

Everything but the wire is real: the codec, announcements, signatures, checks, membership and waiting are the same as
over libp2p. A test may advance a virtual clock. Peers may have plain names; their keys are then functions of these
names. Peers share nothing but bytes.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Collection, Sequence

from swarmgame.game.state import PeerId
from swarmgame.swarm.blocking import BlockingCommunication, EventLoopThread
from swarmgame.swarm.clock import Clock, RealClock, VirtualClock
from swarmgame.swarm.identity import Identity, public_key_of, verify_with
from swarmgame.swarm.node import SwarmNode
from swarmgame.swarm.settings import SwarmSettings
from swarmgame.swarm.transport import CALL_BYTES, Handlers, Oversized, Traffic, Unreachable


class MemoryHub:
    """The network and the clock of a swarm in memory.

    Args:
        run: name of the run.
        virtual: use a clock that stands still until `advance`.
    """

    def __init__(self, run: str = "memory", *, virtual: bool = False) -> None:
        self.run = run
        self.clock: Clock = VirtualClock() if virtual else RealClock()
        self.thread = EventLoopThread(f"memory-hub-{run}")
        self.lost: Callable[[PeerId, PeerId, bytes], bool] = lambda sender, receiver, message: False
        """(sender, receiver, message) → whether the network loses this small message."""
        self.addresses: dict[PeerId, str | None] = {}
        """Hosts of peers, of those that have one; None of a peer that is never connected itself."""
        self.body_seconds: Callable[[PeerId, PeerId], float] = lambda holder, receiver: 0.0
        """(holder, receiver) → how long the transfer of a body takes."""
        self.shares_keys = False
        """Whether a new peer of a name leaves an earlier one of that name alive, as on two machines with one key."""
        self._transports: dict[PeerId, list[MemoryTransport]] = {}
        self._heartbeats: dict[MemoryTransport, tuple[float, bytes]] = {}
        self._keys: dict[PeerId, bytes] = {}
        self._collects = 0
        self._collecting = threading.Condition()

    def communication(self, name: str, settings: SwarmSettings | None = None) -> MemoryCommunication:
        """Return a new peer of that name, which replaces an earlier one of the same name unless keys are shared."""
        return MemoryCommunication(self, name, settings)

    def transport(self, peer: PeerId) -> MemoryTransport:
        """Return a transport without a node, for peers that break the protocol."""
        return MemoryTransport(self, peer)

    def identity(self, name: str) -> Identity:
        """Return the key of a named peer, and let all peers know it."""
        identity = Identity.named(name)
        self._keys[name] = identity.public_key
        return identity

    def verify(self, peer: PeerId, message: bytes, signature: bytes) -> bool:
        key = self._keys.get(peer) or public_key_of(peer)
        return key is not None and verify_with(key, message, signature)

    def kill(self, name: PeerId) -> None:
        """Remove a peer without notice; its last heartbeat stays until it expires."""
        self._transports.pop(name, None)

    def advance(self, seconds: float) -> None:
        """Advance the virtual clock, and return when all tasks wait again."""
        assert isinstance(self.clock, VirtualClock), "only a virtual clock can be advanced"
        self.thread.run(self.clock.advance(seconds))

    @property
    def collects(self) -> int:
        """How many collects have begun, of all peers."""
        with self._collecting:
            return self._collects

    def wait_for_collects(self, count: int, seconds: float = 30.0) -> None:
        """Wait until `collects` has reached a number, so that time is not advanced before a peer waits for it."""
        with self._collecting:
            assert self._collecting.wait_for(lambda: self._collects >= count, seconds), (
                f"{self._collects} of {count} collects began"
            )

    def on_collect_started(self) -> None:
        with self._collecting:
            self._collects += 1
            self._collecting.notify_all()

    def close(self) -> None:
        """End the loop of the hub, and every peer with it."""
        self.thread.close()


class MemoryTransport:
    """One peer's connection to a hub; see `Transport`."""

    def __init__(self, hub: MemoryHub, peer: PeerId) -> None:
        self.hub = hub
        self.peer = peer
        self.handlers: Handlers | None = None
        self.failure = ""
        """See `Transport`; a test may set it."""
        self._traffic = Traffic()

    @property
    def traffic(self) -> Traffic:
        return self._traffic

    async def start(self, handlers: Handlers) -> None:
        self.handlers = handlers
        earlier = self.hub._transports.get(self.peer, []) if self.hub.shares_keys else []
        self.hub._transports[self.peer] = [*earlier, self]

    async def close(self) -> None:
        if self._is_open:
            self.hub._transports[self.peer].remove(self)
            if not self.hub._transports[self.peer]:
                del self.hub._transports[self.peer]

    @property
    def _is_open(self) -> bool:
        return self in self.hub._transports.get(self.peer, ())

    def addresses(self) -> tuple[str, ...]:
        return ()

    def remote_address(self, peer: PeerId) -> str | None:
        return self.hub.addresses.get(peer, "")

    async def connect_initial_peers(self) -> Sequence[PeerId]:
        return [peer for peer in self.hub._transports if peer != self.peer]

    async def ping_initial_peer(self, known: Collection[PeerId]) -> None:
        """Do nothing: a hub forgets no peer."""

    async def connect(self, peer: PeerId, addresses: Sequence[str], seconds: float) -> None:
        self._other(peer)

    async def call(self, peer: PeerId, message: bytes, seconds: float) -> bytes:
        other = self._other(peer)
        self._traffic.sent(len(message))
        if self.hub.lost(self.peer, peer, message):
            raise Unreachable(peer)
        other._traffic.received(len(message))
        assert other.handlers is not None
        gate = other.handlers.gate
        if gate is not None and not gate.admits(self.peer, len(message)):
            raise Unreachable(peer)
        answer = other.handlers.call(self.peer, message)
        other._traffic.sent(len(answer))
        if gate is not None:
            gate.answered(self.peer, len(answer))
        if len(answer) > CALL_BYTES:
            raise Oversized(peer)
        self._traffic.received(len(answer))
        return answer

    async def fetch(self, peer: PeerId, name: bytes, limit: int, seconds: float) -> bytes | None:
        other = self._other(peer)
        self._traffic.sent(len(name))
        other._traffic.received(len(name))
        assert other.handlers is not None
        body = other.handlers.body(name)
        if body is None:
            return None
        if len(body) > limit:
            raise Oversized(peer)
        if takes := self.hub.body_seconds(peer, self.peer):
            await self.hub.clock.wait(asyncio.Event(), min(takes, seconds))
            if takes > seconds:
                raise Unreachable(peer)
        other._traffic.sent(len(body))
        self._traffic.received(len(body))
        return body

    async def advertise(self, heartbeat: bytes, expires: float) -> None:
        if not self._is_open:
            return
        known = self.hub._heartbeats.get(self)
        if known is None or known[0] < expires:
            self.hub._heartbeats[self] = (expires, heartbeat)

    async def discover(self, *, thorough: bool = False) -> Sequence[bytes]:
        return [heartbeat for expires, heartbeat in self.hub._heartbeats.values() if expires > self.hub.clock.now()]

    def _other(self, peer: PeerId) -> MemoryTransport:
        others = self.hub._transports.get(peer)
        if not others or not self._is_open:
            raise Unreachable(peer)
        return others[-1]


class MemoryCommunication(BlockingCommunication):
    """A peer in memory; see `CommunicationManager`.

    Args:
        hub: the network.
        name: our peer id; any unique name.
    """

    def __init__(self, hub: MemoryHub, name: str, settings: SwarmSettings | None = None) -> None:
        identity = hub.identity(name)
        node = SwarmNode(hub.run, name, identity.sign, hub.verify, MemoryTransport(hub, name), hub.clock, settings)
        super().__init__(node, hub.thread, own_loop=False)
        self._hub = hub

    def _on_collect_started(self) -> None:
        self._hub.on_collect_started()
