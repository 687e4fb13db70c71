"""How a peer behaves in the exchange, whatever the transport."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from swarmgame.game.state import PeerId
from swarmgame.swarm.codec import SHARD_BYTES, Limits


@dataclass(frozen=True)
class Settings:
    """How an agent behaves.

    Args:
        admission: whether a peer may take part.
        heartbeat_seconds: between heartbeats; a peer silent for `lifetimes` of them is gone.
        keep_rounds: how many rounds our own words are served, and how many rounds back others are heard.
        inline_bytes: bodies up to this size travel with the announcement where everybody's words are gathered.
        call_seconds: longest wait for an answer to a small message.
        shard_bytes: size of shards before compression.
        limits: of what others send.
    """

    admission: Callable[[PeerId], bool] = lambda peer: True
    heartbeat_seconds: float = 5.0
    lifetimes: float = 3.0
    keep_rounds: int = 4
    inline_bytes: int = 64 << 10
    call_seconds: float = 5.0
    shard_bytes: int = SHARD_BYTES
    limits: Limits = field(default_factory=Limits)
