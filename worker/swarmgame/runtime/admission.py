"""Admission: which peers may take part in a game, and which of them count from the start (anchors)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from swarmgame.game.state import PeerId
from swarmgame.runtime.options import PeerOptions
from swarmgame_api.manifest import SwarmGame


@dataclass(frozen=True)
class Admission:
    """Which peers may take part.

    Args:
        anchors: those that count from the start; None: every peer that is admitted.
        admits: whether a peer may take part.
    """

    anchors: frozenset[PeerId] | None = frozenset()
    admits: Callable[[PeerId], bool] = lambda peer: True


def admission_of(manifest: SwarmGame, options: PeerOptions, registered: Callable[[PeerId], bool] | None) -> Admission:
    """Return the admission of `spec.communication`.

    A list and a chain vouch for the peers that they admit. In an open swarm the anchors are the game's own
    peers (of one run, or of one game in a cluster) and those that the user vouches for.

    Args:
        registered: whether a peer is proven on the game's chain; None where the game has none.
    """
    communication, together = manifest.spec.communication, frozenset(options.anchors)
    if communication.admission == "Registered" and registered is not None:
        return Admission(None, registered)
    if communication.admission == "Allowlist":
        allowed = together | frozenset(communication.allowed_peers)
        return Admission(None, allowed.__contains__)
    return Admission(together)
