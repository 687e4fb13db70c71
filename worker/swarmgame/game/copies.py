"""Copies: groups of other peers whose rollouts were seen before, in another contribution.

Whoever sends on the rollouts of others has their influence without their work. Two honest peers with one question may
give the same short answer, so equal rollouts alone are no proof. Let q be the sum of the probabilities of the rollouts
that one author gave to a question. Then k different ones of them are among n sampled rollouts with a probability of at
most C(n, k) q^k. A group for which that is below 1e-7 for some author is a copy. Claims cannot be verified, so they
count within bounds: each author has a sum of its own, which a claim of another peer does not raise, and no rollout of T
tokens is less probable than T times three times our own mean, so that low claims for likely answers make no copies of
those of honest peers. Pure state, part of the checkpoint.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from hashlib import blake2b
from typing import Any, NamedTuple

from swarmgame.game.state import Contribution, Group, PeerId, Rollout

COINCIDENCE_NATS = 16.0
"""Equal rollouts whose chance is below exp(-16), 1e-7, are copies."""
LONGEST_NATS = 3.0
"""Nats of a token at most, as a multiple of the mean over our own tokens."""
MAX_SEEN = 1 << 16
"""Most rollouts that are remembered; the oldest are forgotten first."""


class _Place(NamedTuple):
    stage: int
    question_id: str
    author: PeerId


class SeenRollouts:
    """The distinct rollouts of own and verified contributions, by stage, question and author.

    Args:
        keep_rounds: number of past rounds from which a contribution may still arrive.
    """

    def __init__(self, keep_rounds: int, max_seen: int = MAX_SEEN) -> None:
        self.filtered = False
        """Whether policies sample among the likeliest tokens only: log-probabilities are those before that, so they do
        not say how likely an answer is, and equal answers prove nothing."""
        self._keep = keep_rounds
        self._max_seen = max_seen
        self._nats = math.inf
        self._seen: dict[tuple[int, str], dict[PeerId, dict[bytes, tuple[int, float]]]] = {}
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def is_copy(self, contribution: Contribution, group: Group) -> bool:
        """Return whether a group of a contribution holds more rollouts of one seen contribution than chance gives it.

        What the same contribution has brought before is no copy: a round that a stop interrupted is played again.
        """
        authors = self._seen.get((contribution.stage, group.question_id))
        if not authors:
            return False
        size, distinct = len(group.rollouts), {_digest(rollout) for rollout in group.rollouts}
        for author, seen in authors.items():
            if author == contribution.peer:
                seen = {digest: each for digest, each in seen.items() if each[0] != contribution.round}
            if _is_improbable(len(distinct & seen.keys()), size, seen):
                return True
        return False

    def add_own(self, contribution: Contribution) -> None:
        """Remember our own rollouts, and how probable their tokens are."""
        rollouts = [rollout for group in contribution.groups for rollout in group.rollouts]
        tokens = sum(len(rollout.logprobs) for rollout in rollouts)
        if tokens:
            self._nats = -math.fsum(logprob for rollout in rollouts for logprob in rollout.logprobs) / tokens
        self.add(contribution)

    def add(self, contribution: Contribution, groups: Iterable[Group] | None = None) -> None:
        """Remember the rollouts of a contribution, or of some of its groups."""
        for group in contribution.groups if groups is None else groups:
            authors = self._seen.setdefault((contribution.stage, group.question_id), {})
            seen = authors.setdefault(contribution.peer, {})
            for rollout in group.rollouts:
                digest = _digest(rollout)
                if digest not in seen:
                    seen[digest] = (contribution.round, self._logprob(rollout))
                    self._count += 1

    def _logprob(self, rollout: Rollout) -> float:
        if self.filtered:
            return 0.0
        least = -LONGEST_NATS * self._nats * len(rollout.logprobs) if rollout.logprobs else 0.0
        return min(0.0, max(math.fsum(rollout.logprobs), least))

    def move_to(self, round: int) -> None:
        """Forget rollouts of rounds from which nothing can arrive, and the oldest beyond `max_seen`."""
        oldest = round - self._keep
        while True:
            self._forget(oldest)
            if self._count <= self._max_seen or oldest >= round:
                return
            oldest += 1

    def _forget(self, oldest: int) -> None:
        rows = [row for row in self._rows() if row[2] >= oldest]
        self._seen, self._count = {}, len(rows)
        for place, digest, round, logprob in rows:
            authors = self._seen.setdefault((place.stage, place.question_id), {})
            authors.setdefault(place.author, {})[digest] = (round, logprob)

    def _rows(self) -> Iterable[tuple[_Place, bytes, int, float]]:
        for (stage, question_id), authors in self._seen.items():
            for author, seen in authors.items():
                for digest, (round, logprob) in seen.items():
                    yield _Place(stage, question_id, author), digest, round, logprob

    def state_dict(self) -> Mapping[str, Any]:
        return {
            "nats": None if math.isinf(self._nats) else self._nats,
            "seen": [[*place, digest.hex(), *rest] for place, digest, *rest in self._rows()],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._nats = math.inf if state["nats"] is None else float(state["nats"])
        self._seen, self._count = {}, len(state["seen"])
        for stage, question_id, author, digest, round, logprob in state["seen"]:
            authors = self._seen.setdefault((stage, question_id), {})
            authors.setdefault(author, {})[bytes.fromhex(digest)] = (round, logprob)


def _is_improbable(found: int, size: int, seen: Mapping[bytes, tuple[int, float]]) -> bool:
    """Return whether so many different rollouts of a set are no chance."""
    if not found:
        return False
    probability = math.fsum(math.exp(logprob) for _, logprob in seen.values())
    log_q = min(0.0, math.log(probability or math.ulp(0.0)))
    return found * log_q + math.log(math.comb(size, found)) < -COINCIDENCE_NATS


def _digest(rollout: Rollout) -> bytes:
    """Return a digest of what a rollout says. The text, because other ids or another tokenizer give the same one; of
    several turns all of them, since many transcripts end in the same way.
    """
    text = "\0".join(rollout.turns)
    content = text.encode(errors="replace") if text else repr(tuple(rollout.token_ids)).encode()
    return blake2b(content, digest_size=8).digest()
