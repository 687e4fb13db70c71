"""`spec.communication`: how peers reach one another, and which peers may join."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from swarmgame_api.base import Model, Rule
from swarmgame_api.quantities import Multiaddress, PeerIdText


class CommunicationSpec(Model):
    """How peers communicate, and which peers may join."""

    backend: Literal["Hivemind", "TorchDistributed"] = "Hivemind"
    """Hivemind: an open peer-to-peer network, peers come and go. TorchDistributed: a fixed group of `peers.replicas`
    peers in step, over one gloo process group; if one is lost, all start again and resume from their checkpoints. No
    bootnode, no outsiders, no encryption."""
    port: Annotated[int, Field(ge=1024, le=65_535)] = 31_000
    """The port that a peer's pod listens on; with TorchDistributed only that of peer 0. With `swarmgame run` peers use
    free ports."""
    admission: Literal["Open", "Allowlist", "Registered"] = "Open"
    """Open: every peer that reaches the swarm is a member. Allowlist: only `allowedPeers` and the game's own peers.
    Registered: only peers that are registered on chain. Peers of a list or of a chain count from the start."""
    allowed_peers: Annotated[tuple[PeerIdText, ...], Field(max_length=1024)] = ()
    """Allowlist: ids of the peers that may join, besides the game's own."""
    probation_rounds: Annotated[int, Field(ge=1, le=1000)] = 3
    """Rounds in a row that a peer of an open swarm must deliver before stages wait for it and its round counts. It
    stops counting at its first miss.
    The game's own peers, of one `swarmgame run` or in one cluster, count from the start."""
    counted_per_address: Annotated[int, Field(ge=1, le=4096)] = 4
    """Most peers of one remote address (of IPv6: of one /64 network) that count, besides the game's own: one host may
    have any number of keys. More where an office or a gateway stands before honest peers."""
    initial_peers: Annotated[tuple[Multiaddress, ...], Field(max_length=64)] = ()
    """Addresses of a swarm to join, besides the game's own bootnode."""

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            cel="self.backend == 'Hivemind' || !has(self.initialPeers) || size(self.initialPeers) == 0",
            expected="no initial peers with backend TorchDistributed: its set of peers is fixed",
            check=lambda communication: communication.backend == "Hivemind" or not communication.initial_peers,
            field="initialPeers",
        ),
        Rule(
            cel="self.admission != 'Allowlist' || (has(self.allowedPeers) && size(self.allowedPeers) > 0)",
            expected="at least one id with admission Allowlist: no other peer may join",
            check=lambda communication: communication.admission != "Allowlist" or bool(communication.allowed_peers),
            field="allowedPeers",
        ),
        Rule(
            cel="self.admission == 'Allowlist' || !has(self.allowedPeers) || size(self.allowedPeers) == 0",
            expected="Allowlist where allowedPeers names peers",
            check=lambda communication: communication.admission == "Allowlist" or not communication.allowed_peers,
            field="admission",
        ),
    )
