"""Scoring: the shared base of the built-in rewards. Extracts answers, batches them by author, and caches scores.

It does not depend on the environment. Invariant: our own and remote rollouts go through the same code. A batch holds
answers of one author, so one author's breaches do not affect the scores of another.
"""

from __future__ import annotations

import hashlib
import re
from abc import abstractmethod
from collections import Counter, OrderedDict
from collections.abc import Mapping, Sequence
from typing import Annotated, ClassVar, Literal

from pydantic import BaseModel, Field

from swarmgame.config import Config
from swarmgame.game.components import ComponentContext, RewardManager
from swarmgame.game.state import GameState, Group, GroupKey, PeerId, Question, Rewards, Rollout

_CACHED_SCORES = 16_384
"""Number of cached scores: a round scores its own answers twice, before publishing and before training. The cache
keeps digests, so it takes about 4 MiB for answers of any length.
"""
_TAGGED = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)


class AnswerConfig(Config):
    """Which part of the text is the answer."""

    answer_format: Literal["plain", "tagged"] | None = None
    """`plain`: the complete text. `tagged`: within the last <answer></answer>. As in the data when not given."""
    max_answer_characters: Annotated[int, Field(ge=1, le=1_000_000)] = 8192
    """A longer answer scores 0 without being read."""


def text_of(rollout: Rollout) -> str:
    """Return the text of a rollout; for a policy over actions, the actions joined by spaces."""
    return rollout.text or " ".join(map(str, rollout.token_ids))


def answer_of(text: str, answer_format: str) -> str | None:
    """Return the answer within a text, without surrounding space; None when the tags are missing."""
    if answer_format == "plain":
        return text.strip()
    found = _TAGGED.findall(text)
    return found[-1].strip() if found else None


class AnswerRewards(RewardManager):
    """Base of rewards that score each answer by itself. Subclasses implement `score`, for answers of one author."""

    Config: ClassVar[type[BaseModel]] = AnswerConfig
    config: AnswerConfig
    scores_own: bool = False
    """Whether the answers that `score` or `reuse` gets are this peer's own."""

    def __init__(self, config: AnswerConfig, context: ComponentContext) -> None:
        super().__init__(config, context)
        self._counts: Counter[str] = Counter()
        self._cache: OrderedDict[bytes, float] = OrderedDict()

    @abstractmethod
    def score(self, answers: Sequence[tuple[Question, str]]) -> Sequence[float | None]:
        """Return the score of each answer, in order; all are of one author. None means 0 for now: it is not cached."""

    def reuse(self, question_id: str, answer: str) -> None:
        """Note that the cached score of an answer is used again."""

    def finish(self, score: float, rollout: Rollout, answer: str | None) -> float:
        """Return the reward of a rollout, given the score of its answer."""
        return score

    def rewards(self, state: GameState) -> Rewards:
        groups = [(key, group) for key, group in state.groups() if group.question_id in state.questions]
        answers = {
            key: [self._answer(state.questions[group.question_id], rollout) for rollout in group.rollouts]
            for key, group in groups
        }
        scores = self._scores(state, groups, answers)
        return {
            key: [
                self.finish(0.0 if answer is None else scores[group.question_id, answer], rollout, answer)
                for rollout, answer in zip(group.rollouts, answers[key], strict=True)
            ]
            for key, group in groups
        }

    def counters(self) -> Mapping[str, int]:
        return dict(self._counts)

    def _answer(self, question: Question, rollout: Rollout) -> str | None:
        text = text_of(rollout)
        answer = answer_of(text, self.config.answer_format or str(question.metadata.get("answer_format", "plain")))
        if answer is not None and len(answer) > self.config.max_answer_characters:
            self._counts["answers_too_long"] += 1
            return None
        return answer

    def _scores(
        self,
        state: GameState,
        groups: Sequence[tuple[GroupKey, Group]],
        answers: Mapping[GroupKey, Sequence[str | None]],
    ) -> dict[tuple[str, str], float]:
        scores: dict[tuple[str, str], float] = {}
        unknown: dict[PeerId, dict[tuple[str, str], None]] = {}
        for key, group in groups:
            for answer in answers[key]:
                if answer is None or (group.question_id, answer) in scores:
                    continue
                known = self._cache.get(_digest(group.question_id, answer))
                if known is not None:
                    scores[group.question_id, answer] = known
                    self.scores_own = key.peer == state.peer
                    self.reuse(group.question_id, answer)
                else:
                    unknown.setdefault(key.peer, {})[group.question_id, answer] = None
        # Our own answers first: a breach in a remote batch cannot keep the same answer of ours from being scored.
        for peer in sorted(unknown, key=lambda peer: (peer != state.peer, peer)):
            pending = [pair for pair in unknown[peer] if pair not in scores]
            self.scores_own = peer == state.peer
            for pair, score in zip(
                pending,
                self.score([(state.questions[question_id], answer) for question_id, answer in pending]),
                strict=True,
            ):
                if score is None:
                    continue
                scores[pair] = score
                self._cache[_digest(*pair)] = score
            while len(self._cache) > _CACHED_SCORES:
                self._cache.popitem(last=False)
        return scores | {pair: 0.0 for pairs in unknown.values() for pair in pairs if pair not in scores}

    def count(self, counter: str) -> None:
        """Add one to a counter."""
        self._counts[counter] += 1


def _digest(question_id: str, answer: str) -> bytes:
    """Return a digest of an answer to a question, in 16 bytes."""
    return hashlib.blake2b(f"{question_id}\0{answer}".encode(errors="surrogatepass"), digest_size=16).digest()
