"""The hivemind backend: a peer of a swarm over libp2p.

Puts an agent on the libp2p transport and on a loop of its own. Not `hivemind.DHT`, see `p2p`. Invariant: after `leave`,
also after a failed `join`, no daemon, thread or socket of ours is left.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from swarmgame.swarm.blocking import BlockingCommunication, EventLoopThread
from swarmgame.swarm.clock import RealClock
from swarmgame.swarm.identity import Identity, verify
from swarmgame.swarm.node import SwarmNode
from swarmgame.swarm.settings import Settings
from swarmgame.swarm.transports.base import Traffic
from swarmgame.swarm.transports.libp2p import Network, P2PTransport


class HivemindCommunication(BlockingCommunication):
    """One peer over libp2p; see `CommunicationManager`.

    Args:
        run: name of the run; peers of other runs on the same network are not heard.
        identity: key file; made when there is none.
        port: TCP port to listen on; 0 takes any.
        initial_peers: dial addresses of some members (`identity.dial_address`); our own among them is ignored, dead
            ones do no harm.
        announce: multiaddrs under which others reach us, where that is not what we listen on; without the peer id.
        settings: how the agent behaves.
        host: IPv4 address to listen on.
        relay: for peers that cannot be dialled: be reached through the initial peers.

    Raises:
        BadData: the key file is not one.
        ValueError: an initial peer is not a dial address.
    """

    def __init__(
        self,
        run: str,
        identity: Path,
        port: int = 0,
        initial_peers: Sequence[str] = (),
        announce: Sequence[str] = (),
        *,
        settings: Settings | None = None,
        host: str = "0.0.0.0",
        relay: bool = False,
    ) -> None:
        key = Identity.load_or_create(identity)
        network = Network(port, tuple(initial_peers), tuple(announce), host, relay)
        self._transport = P2PTransport(run, key.peer, identity, network)
        agent = SwarmNode(run, key.peer, key.sign, verify, self._transport, RealClock(), settings)
        super().__init__(agent, EventLoopThread(f"exchange-{key.peer[-6:]}"), own_loop=True)

    @property
    def traffic(self) -> Traffic:
        """Bytes and messages since the start, the DHT's own included."""
        return self._transport.traffic

    @property
    def addresses(self) -> tuple[str, ...]:
        """Where others reach us, with the peer id; known once joined."""
        return tuple(f"{address}/p2p/{self.peer}" for address in self._transport.addresses())
