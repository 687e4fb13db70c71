"""Outbox: what this peer said lately, kept so that a restarted peer can say it again.

A peer that is killed after it spoke may be needed by a slower one that has not heard it yet. The words of the last
rounds travel in the checkpoint in their wire format, and are published again on return: equal bytes, equal hashes, so
nobody takes them for a second opinion.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from swarmgame.game.protocol import Claim, Collected, CollectPolicy, CommunicationManager, Member
from swarmgame.game.state import Contribution, PeerId
from swarmgame.swarm import codec


class Outbox:
    """A connection that remembers what was published.

    Args:
        inner: the connection.
        run: the run's id, which the wire format carries.
        keep_rounds: how many rounds back others may still want.
    """

    def __init__(self, inner: CommunicationManager, *, run: str, keep_rounds: int) -> None:
        self._inner = inner
        self._run = run
        self._keep = keep_rounds
        self._said: dict[tuple[int, int], tuple[Contribution, tuple[Claim, ...]]] = {}

    @property
    def peer(self) -> PeerId:
        return self._inner.peer

    def join(self, *, expect: Sequence[PeerId] = (), at_least: int = 1, timeout_seconds: float = 120.0) -> None:
        """Joins, then says again what the others may have missed."""
        self._inner.join(expect=expect, at_least=at_least, timeout_seconds=timeout_seconds)
        for contribution, claims in self._said.values():
            self._inner.publish(contribution, claims)

    def membership(self) -> tuple[Member, ...]:
        return self._inner.membership()

    def announce_progress(self, round: int, stage: int) -> None:
        self._inner.announce_progress(round, stage)

    def publish(self, contribution: Contribution, claims: Sequence[Claim] = ()) -> None:
        self._said[contribution.round, contribution.stage] = contribution, tuple(claims)
        oldest = contribution.round - self._keep
        self._said = {when: said for when, said in self._said.items() if when[0] >= oldest}
        self._inner.publish(contribution, claims)

    def collect(
        self, round: int, stage: int, policy: CollectPolicy, *, stopped: Callable[[], bool] = lambda: False
    ) -> Collected:
        return self._inner.collect(round, stage, policy, stopped=stopped)

    def leave(self) -> None:
        self._inner.leave()

    def state_dict(self) -> Mapping[str, Any]:
        said = [
            {
                "shards": [shard.data for shard in codec.encode(contribution, self._run)],
                "claims": [(c.mean, c.nonzero_advantage) for c in claims],
            }
            for contribution, claims in self._said.values()
        ]
        return {"peer": self.peer, "said": said}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        if state["peer"] != self.peer:
            # Another identity (the key file was lost): nobody would accept the old words from us.
            return
        for entry in state["said"]:
            contribution = codec.decode(entry["shards"])
            self._said[contribution.round, contribution.stage] = (
                contribution,
                tuple(Claim(*claim) for claim in entry["claims"]),
            )
