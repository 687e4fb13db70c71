"""`spec.communication`: how peers reach one another, and who may come in."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from swarmgame_api.model import Model, Rule
from swarmgame_api.quantities import Multiaddress


class Communication(Model):
    """How peers talk, and who may join."""

    backend: Literal["Hivemind", "TorchDistributed"] = "Hivemind"
    """Hivemind: an open peer-to-peer network, peers come and go. TorchDistributed: a fixed group of `peers.replicas`
    peers in step, over one gloo process group; if one is lost, all start again and resume from their checkpoints. No
    bootnode, no outsiders, no encryption."""
    port: Annotated[int, Field(ge=1024, le=65_535)] = 31_000
    """The port a peer's pod listens on; with TorchDistributed peer 0 alone, the others anywhere. On one machine, peers
    take free ports.
    """
    admission: Literal["Open", "Registered"] = "Open"
    """Open: whoever reaches the swarm is a member. Registered: only peers that have proven their id on chain."""
    initial_peers: Annotated[tuple[Multiaddress, ...], Field(max_length=64)] = ()
    """Addresses of a swarm to join, besides the game's own bootnode."""

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            cel="self.backend == 'Hivemind' || !has(self.initialPeers) || size(self.initialPeers) == 0",
            expected="no initial peers with backend TorchDistributed: that world is closed",
            check=lambda communication: communication.backend == "Hivemind" or not communication.initial_peers,
            field="initialPeers",
        ),
    )
