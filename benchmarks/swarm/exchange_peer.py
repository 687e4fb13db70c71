"""SwarmGame's arm of the exchange: one process, one publish and one collect (gather, quorum 100 %) per request.

A peer publishes a contribution as in a game: random token ids, log-probabilities and text, which the codec can hardly
compress, of a size at which its encoded shards have at least the requested bytes. It is made before the clock starts;
encoding, signing, sending, checking and decoding are measured (received numbers become Python objects when they are
read, as in a game). A call is complete when every other peer's contribution came with all its tokens.
"""

from __future__ import annotations

import gc
import random
import string
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from channel import Parent
from connection import connect

from swarmgame.game.protocol import CollectPolicy, Exchange
from swarmgame.game.state import Contribution, FinishReason, Group, Message, PeerId, Prompt, QuestionRef, Rollout
from swarmgame.swarm.codec import encode

VOCABULARY = 151_936
CHARACTERS_A_TOKEN = 4
ROLLOUTS = 8
TOKENS = 256
ALPHABET = string.ascii_letters + string.digits + " ."


def contribution(peer: PeerId, round: int, groups: Sequence[Group], references: Sequence[QuestionRef]) -> Contribution:
    """Return a peer's contribution of a round."""
    return Contribution(
        peer, round, 0, tuple(groups), {reference.id: reference for reference in references}, tokenizer="benchmark"
    )


class RandomGroups:
    """Groups of at least `size` bytes when encoded; the same for all peers, so that each can check the others'."""

    def __init__(self, peer: PeerId, size: int) -> None:
        self._random = random.Random(size)
        self.references: list[QuestionRef] = []
        self.groups: list[Group] = []
        self.bytes = 0
        # The smallest contribution has a header and a signature of a few hundred bytes; tokens are added until the
        # size
        # is reached.
        tokens = max(1, min(TOKENS, (size - 300) // (ROLLOUTS * 8)))
        while self.bytes < size:
            missing = max(1, (size - self.bytes) // (ROLLOUTS * tokens * 9))
            for _ in range(missing):
                self._add(tokens)
            self.bytes = sum(
                len(shard.data) for shard in encode(contribution(peer, 0, self.groups, self.references), "benchmark")
            )

    @property
    def tokens(self) -> int:
        return sum(len(rollout.token_ids) for group in self.groups for rollout in group.rollouts)

    def _add(self, tokens: int) -> None:
        reference = QuestionRef("benchmark", "", len(self.groups), 0)
        prompt = Prompt(reference.id, (Message("user", self._text(64)),))
        self.references.append(reference)
        self.groups.append(Group(prompt, tuple(self._rollout(tokens) for _ in range(ROLLOUTS))))

    def _rollout(self, tokens: int) -> Rollout:
        ids = tuple(self._random.choices(range(VOCABULARY), k=tokens))
        logprobs = tuple(-8 * self._random.random() for _ in range(tokens))
        return Rollout(self._text(CHARACTERS_A_TOKEN * tokens), ids, logprobs, FinishReason.LENGTH)

    def _text(self, characters: int) -> str:
        return "".join(self._random.choices(ALPHABET, k=characters))


def main() -> None:
    parent = Parent()
    requests = parent.requests()
    policy = CollectPolicy(Exchange.GATHER, quorum=1.0, deadline_seconds=60.0)
    with tempfile.TemporaryDirectory(prefix="exchange-peer-") as folder:
        communication = connect(Path(folder), parent, requests)
        gc.collect()  # as a peer does before it plays
        gc.freeze()
        parent.answer(ready=True)
        round = 0
        try:
            for request in requests:
                if "make" in request:
                    groups = RandomGroups(communication.peer, request["make"])
                    parent.answer(bytes=groups.bytes)
                    continue
                ours = contribution(communication.peer, round, groups.groups, groups.references)
                began = time.perf_counter()
                communication.publish(ours)
                received = communication.collect(round, 0, policy).contributions
                seconds = time.perf_counter() - began
                tokens = [sum(len(r.token_ids) for group in other.groups for r in group.rollouts) for other in received]
                parent.answer(seconds=seconds, others=sum(count == groups.tokens for count in tokens))
                round += 1
                communication.announce_progress(round, 0)
        finally:
            communication.leave()


if __name__ == "__main__":
    main()
