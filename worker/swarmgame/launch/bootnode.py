"""A bootnode: an address that newcomers try first, and a place where the members' heartbeats lie. It plays no round.

It publishes no heartbeat of its own, so that nobody takes it for a member; it answers greetings with the heartbeats
that it keeps, each signed by its author. It keeps nothing on disk: after a restart the members find it again within a
few heartbeats, for each of them greets, now and then, those of its initial peers that are no members. Invariant: no
torch, a few tens of megabytes; a p2p daemon that died ends the process.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgpack
from prometheus_client import CollectorRegistry, Gauge, generate_latest

import swarmgame
from swarmgame.errors import Temporary
from swarmgame.game.state import PeerId
from swarmgame.observability.http import Endpoints
from swarmgame.observability.metric_definitions import BOOTNODE, BOOTNODE_PREFIX
from swarmgame.observability.status import PeerStatus, Phase
from swarmgame.swarm.discovery import HELLO
from swarmgame.swarm.identity import Identity
from swarmgame.swarm.transports.base import CALL_BYTES, Handlers, Traffic
from swarmgame.swarm.transports.torch_import_stubs import stub_torch_imports

logger = logging.getLogger(__name__)
LOOK_SECONDS = 1.0
ROSTER = 128
"""Heartbeats in the answer to a greeting, at most."""


@dataclass(frozen=True)
class BootnodeOptions:
    """How a bootnode is started.

    Args:
        run: name of the run that it serves.
        identity: the key file; it is only read, and must be there.
        port: p2p TCP port; 0 takes any.
        http_port, http_host: of the endpoints.
        announce: multiaddresses that others should use for us.
        initial_peers: other bootnodes, or members elsewhere.
        host: IPv4 address to listen on.
    """

    run: str
    identity: Path
    port: int = 0
    http_port: int = 0
    http_host: str = "127.0.0.1"
    announce: tuple[str, ...] = ()
    initial_peers: tuple[str, ...] = ()
    host: str = "0.0.0.0"


class BootnodeMetrics:
    """What `/metrics` of a bootnode shows, in a registry of its own."""

    def __init__(self, traffic: Traffic) -> None:
        self._traffic = traffic
        self._registry = CollectorRegistry()
        self._gauges = {
            metric.name: Gauge(BOOTNODE_PREFIX + metric.name, metric.what, metric.labels, registry=self._registry)
            for metric in BOOTNODE
        }

    def members(self, count: int) -> None:
        self._gauges["members"].set(count)

    def render(self) -> bytes:
        for name in ("bytes_sent", "bytes_received", "messages_sent", "messages_received"):
            self._gauges[name].set(getattr(self._traffic, name))
        return generate_latest(self._registry)


async def serve(options: BootnodeOptions, stop: asyncio.Event, said: Callable[[str], None] = lambda line: None) -> None:
    """Serves until `stop` is set. `groups_for` gets one line with the address, once it can be dialled.

    Raises:
        BadData: the key file is none.
        Temporary: a port is taken, or the p2p daemon does not start, or it died.
    """
    try:
        identity = Identity.load(options.identity)
    except OSError as error:
        raise Temporary(f"the bootnode's key {options.identity} cannot be read: {error.strerror}") from error
    # Before the transport is imported: hivemind would bring torch.
    stub_torch_imports()
    from swarmgame.swarm.transports.libp2p import Libp2pOptions, Libp2pTransport

    network = Libp2pOptions(options.port, options.initial_peers, options.announce, options.host)
    transport = Libp2pTransport(options.run, identity.peer, options.identity, network)
    status = PeerStatus(version=swarmgame.__version__)
    status.change(peer=identity.peer)
    metrics = BootnodeMetrics(transport.traffic)
    endpoints = Endpoints(status, metrics, options.http_host, options.http_port, alive=lambda: transport.failure)

    known = roster(())

    def answer(sender: PeerId, message: bytes) -> bytes:
        return known if message[:1] == HELLO else b""

    endpoints.start()
    try:
        await transport.start(Handlers(call=answer, body=lambda name: None))
        await transport.connect_initial_peers()
        addresses = tuple(f"{address}/p2p/{identity.peer}" for address in transport.addresses())
        status.change(phase=Phase.RUNNING, addresses=addresses)
        said(f"bootnode of {options.run} listens on {' '.join(addresses)}")
        while not await _set_within(stop, LOOK_SECONDS):
            if transport.failure:
                raise Temporary(transport.failure)
            heartbeats = await transport.discover()
            metrics.members(len(heartbeats))
            known = roster(heartbeats)
    finally:
        status.stopping()
        await transport.close()
        endpoints.stop()


def roster(heartbeats: Sequence[bytes]) -> bytes:
    """The answer to a greeting: as many heartbeats as fit. Whoever reads it checks their signatures."""
    chosen: list[bytes] = []
    size = 8
    for heartbeat in heartbeats[:ROSTER]:
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
