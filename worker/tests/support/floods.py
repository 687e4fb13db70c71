"""Strangers with free keys that flood one peer in memory: announcements, bodies, calls."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import msgpack
import pytest
from contributions import make_contribution
from swarms import RUN, MemorySwarm, RoguePeer

from swarmgame.game.protocol import Collected, CollectPolicy, Exchange
from swarmgame.game.state import Contribution, Group, Prompt, QuestionRef, Rollout
from swarmgame.swarm import inbox, memory
from swarmgame.swarm.blocking import BlockingCommunication
from swarmgame.swarm.codec import encode
from swarmgame.swarm.gate import Gate
from swarmgame.swarm.inbox import Inbox
from swarmgame.swarm.messages import make_announcement, make_index
from swarmgame.swarm.node import SwarmNode
from swarmgame.swarm.shares import Pool

EXPIRES = 2_000_000_000
HUGE = Pool(1 << 60, 1 << 60)


class Flooded:
    """Two peers that count for each other, and strangers.

    Args:
        exchange: of the game.
        settings: of the peers.
    """

    def __init__(self, exchange: Exchange = Exchange.GATHER, **settings: object) -> None:
        self.swarm = MemorySwarm()
        self.policy = CollectPolicy(exchange, 1.0, 60.0, external_groups=8, max_per_peer=4, max_staleness=1)
        how = {"anchors": frozenset({"ann", "bob"}), "keep_rounds": 2} | settings
        self.ann, self.bob = self.swarm.group("ann", "bob", **how)
        self.round = 0

    def stranger(self, name: str) -> RoguePeer:
        return self.swarm.rogue(name)

    def play(self) -> tuple[Collected, Collected]:
        """Let both peers play a round."""
        for peer in (self.ann, self.bob):
            peer.publish(make_contribution(peer.peer, self.round))
        found = [self.swarm.begin(peer, self.round, 0, self.policy) for peer in (self.ann, self.bob)]
        self.round += 1
        first, second = (future.result(60) for future in found)
        return first, second

    def settle(self) -> None:
        """Let everything run that a message has started."""
        self.swarm.hub.advance(0.01)

    def kept(self, peer: BlockingCommunication) -> int:
        """Return the bytes that a peer keeps for strangers."""
        return peer._node.inbox.kept_bytes.total(counts=False)

    def entries(self, peer: BlockingCommunication) -> int:
        """Return the entries that a peer has of strangers."""
        return peer._node.inbox.places.total(counts=False)

    def outcome(self, peer: BlockingCommunication, name: str) -> int:
        return peer._node.outcomes[name]

    def close(self) -> None:
        self.swarm.close()


def announce(rogue: RoguePeer, contribution: Contribution, *, serve: bool = True, shard_bytes: int = 1 << 20) -> bytes:
    """Return an announcement of a contribution; its index and bodies are served."""
    shards = encode(contribution, RUN, shard_bytes=shard_bytes)
    index = make_index(contribution, shards)
    made = make_announcement(
        RUN, rogue.peer, contribution.round, contribution.stage, index, EXPIRES, rogue.identity.sign
    )
    if serve:
        rogue.bodies.update({shard.name: shard.data for shard in shards})
        rogue.bodies[made.root] = index
    return made.message


def repetitive(peer: str, round: int, stage: int = 0, *, groups: int = 8, characters: int = 250_000) -> Contribution:
    """Return a contribution that is small on the wire: its texts are one letter and the number of their group."""
    references = [QuestionRef("sums", "c0ffee", 1000 * round + stage, index) for index in range(groups)]
    made = tuple(Group(Prompt(each.id), (Rollout(f"{each.index}" + "a" * characters, (), ()),)) for each in references)
    return Contribution(peer, round, stage, made, {each.id: each for each in references}, "bytes", 0)


def many_rollouts(peer: str, round: int, *, groups: int, rollouts: int) -> Contribution:
    """Return a contribution of many short rollouts."""
    made = make_contribution(peer, round, groups=groups, rollouts=1, tokens=1)
    return replace(made, groups=tuple(replace(group, rollouts=group.rollouts * rollouts) for group in made.groups))


@contextmanager
def without_bounds() -> Iterator[None]:
    """Take every announcement, body and call."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Inbox, "refusal", lambda self, announcement, sender: "")
        for name in ("COUNTED_ENTRIES", "OTHERS_ENTRIES"):
            patch.setattr(inbox, name, HUGE)
        patch.setattr(memory.KeptBytes, "_pools", lambda self: (HUGE, HUGE))
        patch.setattr(SwarmNode, "_gossips", lambda self: True)
        patch.setattr(Gate, "admits", lambda self, sender, size, protocol="": True)
        yield


def pack_announcement(message: bytes, bodies: Sequence[bytes] = ()) -> bytes:
    """Return the call that carries an announcement."""
    packed: bytes = msgpack.packb([message, list(bodies)])
    return b"A" + packed


Make = Callable[..., Flooded]
