"""Scoring: what the built-in rewards share. A rollout's words, groups by author, and memory of scores already given.

Knows no environment. Invariant: own and foreign rollouts go through the same code; only how they are batched tells them
apart, so that one author's breaches never cost another's scores.
"""

from __future__ import annotations

import hashlib
import math
import re
from abc import abstractmethod
from collections import Counter, OrderedDict
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, Field

from swarmgame.config import Config
from swarmgame.game.components import ComponentContext, RewardManager
from swarmgame.game.state import GameState, Group, GroupKey, PeerId, Question, Rewards, Rollout

_REMEMBERED = 16_384
"""Scores that are kept: a round scores its own answers twice, before it publishes and before it trains. About 4 MiB,
however long answers are.
"""
_TAGGED = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)


class AnswerConfig(Config):
    """Where the answer stands in the text."""

    answer_format: Literal["plain", "tagged"] | None = None
    """`plain`: the whole text. `tagged`: within the last <answer></answer>. What the data asks for, when not given."""
    max_answer_characters: Annotated[int, Field(ge=1, le=1_000_000)] = 8192
    """A longer answer is not looked at, and scores 0."""


def words_of(rollout: Rollout) -> str:
    """The text of a rollout; for a policy without words its actions, joined by spaces."""
    return rollout.text or " ".join(map(str, rollout.token_ids))


def answer_of(text: str, answer_format: str) -> str | None:
    """The answer within a text, without surrounding space; None when the tags are missing."""
    if answer_format == "plain":
        return text.strip()
    found = _TAGGED.findall(text)
    return found[-1].strip() if found else None


class AnswerRewards(RewardManager):
    """Base of rewards that look at one answer at a time. Subclasses say how good answers are, in batches of one
    author's words.
    """

    Config: ClassVar[type[BaseModel]] = AnswerConfig
    config: AnswerConfig

    def __init__(self, config: AnswerConfig, context: ComponentContext) -> None:
        super().__init__(config, context)
        self._counts: Counter[str] = Counter()
        self._remembered: OrderedDict[bytes, float] = OrderedDict()

    @abstractmethod
    def score(self, asked: Sequence[tuple[Question, str]]) -> Sequence[float | None]:
        """How good each answer is, in order; all of one author. None: 0 for now, and not to be remembered."""

    def finish(self, score: float, rollout: Rollout, answer: str | None) -> float:
        """The reward of a rollout from the score of its answer."""
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
        words = words_of(rollout)
        answer = answer_of(words, self.config.answer_format or str(question.metadata.get("answer_format", "plain")))
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
                known = self._remembered.get(_digest(group.question_id, answer))
                if known is not None:
                    scores[group.question_id, answer] = known
                else:
                    unknown.setdefault(key.peer, {})[group.question_id, answer] = None
        # Our own words first: what a stranger says of the same question cannot keep them from being scored.
        for peer in sorted(unknown, key=lambda peer: (peer != state.peer, peer)):
            asked = [pair for pair in unknown[peer] if pair not in scores]
            for pair, score in zip(
                asked, self.score([(state.questions[question], answer) for question, answer in asked]), strict=True
            ):
                if score is None:
                    continue
                scores[pair] = score
                self._remembered[_digest(*pair)] = score
            while len(self._remembered) > _REMEMBERED:
                self._remembered.popitem(last=False)
        return scores | {pair: 0.0 for pairs in unknown.values() for pair in pairs if pair not in scores}

    def count(self, what: str) -> None:
        """One more of something worth a metric."""
        self._counts[what] += 1


def _digest(question: str, answer: str) -> bytes:
    """Name an answer to a question in 16 bytes."""
    return hashlib.blake2b(f"{question}\0{answer}".encode(errors="surrogatepass"), digest_size=16).digest()


def finite(value: Any) -> float | None:
    """A number that can be a reward, or None."""
    if isinstance(value, bool | int | float) and math.isfinite(value):
        return float(value)
    return None
