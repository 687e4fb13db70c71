"""Settings of a peer's part in the exchange, whatever the transport."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from swarmgame.game.state import PeerId
from swarmgame.swarm.codec import SHARD_BYTES, Limits


@dataclass(frozen=True)
class SwarmSettings:
    """How a node behaves.

    Args:
        admission: whether a peer may take part.
        heartbeat_seconds: time between heartbeats; a peer without one for `lifetimes` of them counts as gone.
        keep_rounds: how many rounds back our contributions are served and those of others are accepted.
        inline_bytes: in GATHER mode, bodies up to this size travel with the announcement.
        call_seconds: longest wait for the answer to a small message.
        shard_bytes: size of shards before compression.
        limits: of what other peers send.
    """

    admission: Callable[[PeerId], bool] = lambda peer: True
    heartbeat_seconds: float = 5.0
    lifetimes: float = 3.0
    keep_rounds: int = 4
    inline_bytes: int = 64 << 10
    call_seconds: float = 5.0
    shard_bytes: int = SHARD_BYTES
    limits: Limits = field(default_factory=Limits)
