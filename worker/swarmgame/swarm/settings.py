"""Settings of a peer's part in the exchange, whatever the transport."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from swarmgame.game.sources import Sources
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
        sources: of our game; peers of another one are no members.
        anchors: peers that count from the start; None: every admitted peer does.
        probation_rounds: complete rounds in a row after which any other peer counts.
        counted_per_address: most peers of one remote address that count, anchors apart.
        max_rounds: of the game; a position beyond it is not believed. 0: unknown.
        stages: of a round.
        rollout_tokens: most ids of a rollout; 0: not known, and not bounded.
    """

    admission: Callable[[PeerId], bool] = lambda peer: True
    heartbeat_seconds: float = 5.0
    lifetimes: float = 3.0
    keep_rounds: int = 4
    inline_bytes: int = 64 << 10
    call_seconds: float = 5.0
    shard_bytes: int = SHARD_BYTES
    limits: Limits = field(default_factory=Limits)
    sources: Sources = field(default_factory=Sources)
    anchors: frozenset[PeerId] | None = frozenset()
    probation_rounds: int = 3
    counted_per_address: int = 4
    max_rounds: int = 0
    stages: int = 1
    rollout_tokens: int = 0
