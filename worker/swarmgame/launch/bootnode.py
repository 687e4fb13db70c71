"""A bootnode: an address that newcomers try first, and that holds the members' heartbeats. It plays no round.

It publishes no heartbeat of its own, so it does not count as a member; it answers a hello with the heartbeats that it
holds, each signed by its author. It keeps nothing on disk: after a restart the members find it again within a few
heartbeats, because from time to time each member sends a hello to those of its initial peers that are not members.
Invariant: no torch, a few tens of megabytes; when its p2p daemon dies, the process ends.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import msgpack
from prometheus_client import CollectorRegistry, generate_latest

import swarmgame
from swarmgame.errors import Temporary
from swarmgame.game.state import PeerId
from swarmgame.observability.http import Endpoints
from swarmgame.observability.metric_definitions import BOOTNODE, BOOTNODE_PREFIX
from swarmgame.observability.status import PeerStatus, Phase
from swarmgame.swarm.discovery import HELLO
from swarmgame.swarm.gate import COUNTED, Gate
from swarmgame.swarm.identity import Identity
from swarmgame.swarm.network_options import NetworkOptions
from swarmgame.swarm.transport import CALL_BYTES, Handlers, Traffic
from swarmgame.swarm.transports.torch_import_stubs import stub_torch_imports
from swarmgame_common.metrics import make_collectors

logger = logging.getLogger(__name__)
POLL_SECONDS = 1.0
MAX_HEARTBEATS = 128
"""In the answer to a hello."""


@dataclass(frozen=True)
class BootnodeOptions:
    """How a bootnode is started.

    Args:
        run: id of the run that it serves.
        network: its key file must exist; it is only read.
        http_host, http_port: of the endpoints; port 0 takes any.
    """

    run: str
    network: NetworkOptions
    http_host: str = "127.0.0.1"
    http_port: int = 0


class BootnodeMetrics:
    """The metrics of a bootnode, in a registry of its own."""

    def __init__(self, traffic: Traffic) -> None:
        self._traffic = traffic
        self._registry = CollectorRegistry()
        self._gauges = make_collectors(BOOTNODE, self._registry, prefix=BOOTNODE_PREFIX)

    def members(self, count: int) -> None:
        self._gauges["members"].set(count)

    def render(self) -> bytes:
        for name in ("bytes_sent", "bytes_received", "messages_sent", "messages_received"):
            self._gauges[name].set(getattr(self._traffic, name))
        return generate_latest(self._registry)


async def serve(
    options: BootnodeOptions, stop: asyncio.Event, notify: Callable[[str], None] = lambda line: None
) -> None:
    """Serve until `stop` is set. `notify` gets a line with the address, once it can be dialled.

    Raises:
        BadData: the key file is not valid.
        Temporary: a port is taken, the p2p daemon does not start, or it died.
    """
    key = options.network.identity
    try:
        identity = Identity.load(key)
    except OSError as error:
        raise Temporary(f"the bootnode's key {key} cannot be read: {error.strerror}") from error
    # Before the transport is imported, since hivemind imports torch.
    stub_torch_imports()
    from swarmgame.swarm.transports.libp2p import Libp2pTransport

    transport = Libp2pTransport(options.run, identity.peer, options.network)
    status = PeerStatus(version=swarmgame.__version__)
    status.change(peer=identity.peer)
    metrics = BootnodeMetrics(transport.traffic)
    endpoints = Endpoints(status, metrics, options.http_host, options.http_port, dead=lambda: transport.failure)

    heartbeat_list = peer_list(())

    def answer(sender: PeerId, message: bytes) -> bytes:
        return heartbeat_list if message[:1] == HELLO else b""

    endpoints.start()
    try:
        gate = Gate(time.time, lambda peer: False, Counter(), together=COUNTED)
        await transport.start(Handlers(call=answer, body=lambda name: None, gate=gate))
        await transport.connect_initial_peers()
        addresses = tuple(f"{address}/p2p/{identity.peer}" for address in transport.addresses())
        status.change(phase=Phase.RUNNING, addresses=addresses)
        notify(f"bootnode of {options.run} listens on {' '.join(addresses)}")
        while not await _set_within(stop, POLL_SECONDS):
            if transport.failure:
                raise Temporary(transport.failure)
            heartbeats = await transport.discover()
            metrics.members(len(heartbeats))
            heartbeat_list = peer_list(heartbeats)
    finally:
        status.stopping()
        await transport.close()
        endpoints.stop()


def peer_list(heartbeats: Sequence[bytes]) -> bytes:
    """Return the answer to a hello: as many heartbeats as fit. The receiver verifies their signatures."""
    chosen: list[bytes] = []
    size = 8
    for heartbeat in heartbeats[:MAX_HEARTBEATS]:
        size += len(heartbeat) + 8
        if size > CALL_BYTES:
            break
        chosen.append(heartbeat)
    packed: bytes = msgpack.packb(chosen)
    return packed


async def _set_within(event: asyncio.Event, seconds: float) -> bool:
    try:
        async with asyncio.timeout(seconds):
            await event.wait()
    except TimeoutError:
        return False
    return True
