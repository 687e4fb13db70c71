"""`spec.communication`: how peers reach one another, and which peers may join."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from swarmgame_api.base import Model, Rule
from swarmgame_api.quantities import Multiaddress


class CommunicationSpec(Model):
    """How peers communicate, and which peers may join."""

    backend: Literal["Hivemind", "TorchDistributed"] = "Hivemind"
    """Hivemind: an open peer-to-peer network, peers come and go. TorchDistributed: a fixed group of `peers.replicas`
    peers in step, over one gloo process group; if one is lost, all start again and resume from their checkpoints. No
    bootnode, no outsiders, no encryption."""
    port: Annotated[int, Field(ge=1024, le=65_535)] = 31_000
    """The port that a peer's pod listens on; with TorchDistributed only that of peer 0. With `swarmgame run` peers use
    free ports."""
    admission: Literal["Open", "Registered"] = "Open"
    """Open: every peer that reaches the swarm is a member. Registered: only peers that are registered on chain."""
    initial_peers: Annotated[tuple[Multiaddress, ...], Field(max_length=64)] = ()
    """Addresses of a swarm to join, besides the game's own bootnode."""

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            cel="self.backend == 'Hivemind' || !has(self.initialPeers) || size(self.initialPeers) == 0",
            expected="no initial peers with backend TorchDistributed: its set of peers is fixed",
            check=lambda communication: communication.backend == "Hivemind" or not communication.initial_peers,
            field="initialPeers",
        ),
    )
