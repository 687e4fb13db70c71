"""A peer of several processes: rank 0 speaks to the swarm and scores, the others hear what it heard.

Wrappers around the communication and the rewards, so that the loop itself knows of one process only. Bytes go between
ranks in the wire format of rollouts, nothing is pickled. Invariant: after each call every rank holds the same answer.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgpack

from swarmgame.game.components import RewardManager
from swarmgame.game.protocol import Claim, ClosedBy, Collected, CollectPolicy, CommunicationManager, Member
from swarmgame.game.ranks import Ranks
from swarmgame.game.state import Contribution, GameState, PeerId, Rewards
from swarmgame.swarm import codec


class RankedCommunication:
    """Rank 0's connection, shared with the other ranks of the peer.

    Args:
        inner: the connection, on rank 0; None elsewhere.
        run: the run's id, which the wire format carries.
        interrupted: whether this very process was told to stop; asked on rank 0 while it waits for the swarm.
    """

    def __init__(
        self,
        inner: CommunicationManager | None,
        ranks: Ranks,
        *,
        peer: PeerId,
        run: str,
        interrupted: Callable[[], bool] = lambda: False,
    ) -> None:
        if (inner is None) == (ranks.rank == 0):
            raise ValueError("rank 0, and rank 0 alone, holds the connection")
        self._inner = inner
        self._ranks = ranks
        self._peer = peer
        self._run = run
        self._interrupted = interrupted

    @property
    def peer(self) -> PeerId:
        return self._peer

    def _share(self, answer: Callable[[CommunicationManager], Any]) -> Any:
        """Asks on rank 0, tells all."""
        mine = msgpack.packb(answer(self._inner)) if self._inner is not None else None
        return msgpack.unpackb(self._ranks.broadcast(mine), strict_map_key=False)

    def join(self, *, expect: Sequence[PeerId] = (), at_least: int = 1, timeout_seconds: float = 120.0) -> None:
        self._share(lambda inner: inner.join(expect=expect, at_least=at_least, timeout_seconds=timeout_seconds))

    def membership(self) -> tuple[Member, ...]:
        rows = self._share(lambda inner: [[m.peer, m.round, m.stage] for m in inner.membership()])
        return tuple(Member(*row) for row in rows)

    def announce_progress(self, round: int, stage: int) -> None:
        if self._inner is not None:
            self._inner.announce_progress(round, stage)

    def publish(self, contribution: Contribution, claims: Sequence[Claim] = ()) -> None:
        if self._inner is not None:
            self._inner.publish(contribution, claims)

    def collect(
        self, round: int, stage: int, policy: CollectPolicy, *, stopped: Callable[[], bool] = lambda: False
    ) -> Collected:
        def ask(inner: CommunicationManager) -> dict[str, Any]:
            # `stopped` is a question to all ranks (see `agreed`), and only rank 0 is here to hear it.
            collected = inner.collect(round, stage, policy, stopped=self._interrupted)
            return {
                "contributions": [
                    [shard.data for shard in codec.encode(c, self._run)] for c in collected.contributions
                ],
                "members": list(collected.members),
                "missing": list(collected.missing),
                "closed_by": str(collected.closed_by),
                "outcomes": dict(collected.outcomes),
                "seconds": collected.seconds,
                "sent": collected.bytes_sent,
                "received": collected.bytes_received,
            }

        told = self._share(ask)
        return Collected(
            contributions=tuple(codec.decode(shards) for shards in told["contributions"]),
            members=tuple(told["members"]),
            missing=tuple(told["missing"]),
            closed_by=ClosedBy(told["closed_by"]),
            outcomes=told["outcomes"],
            seconds=told["seconds"],
            bytes_sent=told["sent"],
            bytes_received=told["received"],
        )

    def leave(self) -> None:
        if self._inner is not None:
            self._inner.leave()


class RankedRewards(RewardManager):
    """Rank 0 scores; the others take its word, in the order of `state.groups()`.

    Args:
        inner: the rewards, on rank 0; None elsewhere, so that only one sandbox runs.
    """

    def __init__(self, inner: RewardManager | None, ranks: Ranks) -> None:
        if (inner is None) == (ranks.rank == 0):
            raise ValueError("rank 0, and rank 0 alone, scores")
        self._inner = inner
        self._ranks = ranks

    def rewards(self, state: GameState) -> Rewards:
        mine = None
        if self._inner is not None:
            scored = self._inner.rewards(state)
            mine = msgpack.packb([_packed(scored.get(key)) for key, _ in state.groups()])
        told = msgpack.unpackb(self._ranks.broadcast(mine))
        rows = zip(state.groups(), told, strict=True)
        return {key: struct.unpack(f"<{len(packed) // 8}d", packed) for (key, _), packed in rows if packed is not None}

    def counters(self) -> Mapping[str, int]:
        return self._inner.counters() if self._inner is not None else {}

    def close(self) -> None:
        if self._inner is not None:
            self._inner.close()


def _packed(rewards: Sequence[float] | None) -> bytes | None:
    return None if rewards is None else struct.pack(f"<{len(rewards)}d", *rewards)


def agreed(stopped: Callable[[], bool], ranks: Ranks) -> Callable[[], bool]:
    """A question that rank 0 answers for all, so that no rank leaves the loop without the others."""
    if ranks.size == 1:
        return stopped

    def ask() -> bool:
        mine = bytes([stopped()]) if ranks.rank == 0 else None
        return ranks.broadcast(mine) == b"\x01"

    return ask
