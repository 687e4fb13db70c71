"""Scoring: the shared base of the built-in rewards. Extracts answers, batches them by author, and caches scores.

It does not depend on the environment. Invariant: our own and remote rollouts go through the same code. A batch holds
answers of one author, so one author's breaches do not affect the scores of another.
"""

from __future__ import annotations

import hashlib
import logging
import math
import time
from abc import abstractmethod
from collections import Counter, OrderedDict
from collections.abc import Mapping, Sequence
from typing import Annotated, ClassVar, Literal

from pydantic import BaseModel, Field

from swarmgame.config import Config
from swarmgame.game.components import ComponentContext, RewardManager
from swarmgame.game.state import GameState, Group, GroupKey, PeerId, Prompt, Question, Rewards, Rollout
from swarmgame.sandbox.author_budgets import AuthorBudgets
from swarmgame.sandbox.client import Budget

_CACHED_SCORES = 16_384
"""Number of cached scores: a round scores its own answers twice, before publishing and before training. The cache
keeps digests, so it takes about 4 MiB for answers of any length.
"""
BEYOND_BUDGET = "answers_beyond_budget"
_BEGIN, _END = "<answer>", "</answer>"
_log = logging.getLogger("swarmgame.rewards")

MAX_REWARD = 1e15
"""Largest size of a reward: the square of a larger one may be infinite in float32."""


class Provisional(float):
    """A score that is not cached: the same answer of another author, or in another round, is scored anew."""


NOT_RUN = Provisional("nan")
"""Of an answer that was not run: neither right nor wrong, so it is not trained on."""


class AnswerConfig(Config):
    """Which part of the text is the answer."""

    answer_format: Literal["plain", "tagged"] | None = None
    """`plain`: the complete text. `tagged`: within the last <answer></answer>. As in the data when not given."""
    max_answer_characters: Annotated[int, Field(ge=1, le=1_000_000)] = 8192
    """A longer answer scores 0 without being read."""


class SandboxedAnswerConfig(AnswerConfig):
    """The same, for answers that are scored in the sandbox."""

    author_seconds: Annotated[float, Field(gt=0, le=86_400)] | None = None
    """Most processor time that a round spends on the answers of one other peer; those of all others together have four
    times that. Answers beyond it are not scored, and counted. Eight deadlines of a call when not given: 16 seconds.
    """


def text_of(prompt: Prompt, rollout: Rollout) -> str:
    """Return the text of a rollout, which may be empty. In a game without text, whose prompts have no messages, it is
    the actions joined by spaces where the policy has not written them there itself.
    """
    return rollout.text if rollout.text or prompt.messages else " ".join(map(str, rollout.token_ids))


def answer_of(text: str, answer_format: str) -> str | None:
    """Return the answer within a text, without surrounding space; None when the tags are missing.

    The tagged answer begins at the last `<answer>` that is closed, and ends at the first `</answer>` after it.
    """
    if answer_format == "plain":
        return text.strip()
    begin = text.rfind(_BEGIN, 0, max(0, text.rfind(_END)))
    if begin < 0:
        return None
    begin += len(_BEGIN)
    return text[begin : text.find(_END, begin)].strip()


class AnswerRewards(RewardManager):
    """Base of rewards that score each answer by itself. Subclasses implement `score`, for answers of one author."""

    Config: ClassVar[type[BaseModel]] = AnswerConfig
    config: AnswerConfig
    scores_own: bool = False
    """Whether the answers that `score` or `reuse` gets are this peer's own."""
    budgets: AuthorBudgets | None
    """Of other peers, where the answers are scored in the sandbox."""
    budget: Budget | None
    """Of the answers that `score` gets; None for this peer's own."""

    def __init__(self, config: AnswerConfig, context: ComponentContext) -> None:
        super().__init__(config, context)
        self._counts: Counter[str] = Counter()
        self._cache: OrderedDict[bytes, float] = OrderedDict()
        self.budgets = None
        self.budget = None

    @abstractmethod
    def score(self, answers: Sequence[tuple[Question, str]]) -> Sequence[float]:
        """Return the score of each answer, in order; all are of one author. NaN means that the answer cannot be scored.
        A `Provisional` score is not cached.
        """

    def reuse(self, question_id: str, answer: str) -> None:
        """Note that the cached score of an answer is used again."""

    def finish(self, score: float, rollout: Rollout, answer: str | None) -> float:
        """Return the reward of a rollout, given the score of its answer."""
        return score

    def rewards(self, state: GameState) -> Rewards:
        groups = [(key, group) for key, group in state.groups() if group.question_id in state.questions]
        answers = {
            key: [self._answer(state.questions[group.question_id], group.prompt, rollout) for rollout in group.rollouts]
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

    def format_of(self, question: Question) -> str:
        """Return the format of an answer to a question: `plain` or `tagged`."""
        named = self.config.answer_format or question.metadata.get("answer_format")
        return "tagged" if named == "tagged" else "plain"

    def _answer(self, question: Question, prompt: Prompt, rollout: Rollout) -> str | None:
        answer = answer_of(text_of(prompt, rollout), self.format_of(question))
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
        provisional: dict[tuple[str, str], float] = {}
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
        # Our own answers first: a breach in a remote batch cannot keep the same answer of ours from being scored. Then
        # those of peers that are vouched for, which the others must not leave without time.
        authors = sorted(unknown, key=lambda peer: (peer != state.peer, not self._is_vouched_for(peer), peer))
        for position, peer in enumerate(authors):
            pending = [pair for pair in unknown[peer] if pair not in scores]
            answered = [(state.questions[question_id], answer) for question_id, answer in pending]
            self.scores_own = peer == state.peer
            for pair, score in zip(
                pending, self._within_budget(state, peer, answered, len(authors) - position), strict=True
            ):
                if isinstance(score, Provisional):
                    if math.isnan(provisional.get(pair, math.nan)):
                        # A mean over held-out questions must not rise because answers were too slow to be scored.
                        lost = state.round.evaluation and math.isnan(score)
                        provisional[pair] = 0.0 if lost else float(score)
                    continue
                scores[pair] = score
                self._cache[_digest(*pair)] = score
            while len(self._cache) > _CACHED_SCORES:
                self._cache.popitem(last=False)
        return provisional | scores

    def _within_budget(
        self, state: GameState, author: PeerId, answers: Sequence[tuple[Question, str]], waiting: int
    ) -> Sequence[float]:
        """Score the answers of one author, with the processor time that the author has in this round."""
        if author == state.peer or self.budgets is None:
            self.budget = None
            began = time.perf_counter()
            scores = self.score(answers)
            if self.budgets is not None and not state.round.evaluation:
                self.budgets.scored_own(time.perf_counter() - began)
            return scores
        self.budgets.begin(state.round.number)
        self.budget = self.budgets.allow(author, waiting)
        allowed, before = self.budget.seconds, self._counts[BEYOND_BUDGET]
        scores = self.score(answers)
        self.budgets.spend(author, allowed - self.budget.seconds)
        if self._counts[BEYOND_BUDGET] and not before:
            _log.warning(
                "round %d: the answers of peer …%s took all of the %.3g seconds of processor time that scoring has for "
                "them: %d of %d were not run and have no score. Likely cause: answers that are made to be slow. Where "
                "honest answers take so long, raise spec.game.rewards.with.authorSeconds. Further ones are counted: %s",
                state.round.number,
                author[-6:],
                allowed,
                self._counts[BEYOND_BUDGET],
                len(answers),
                BEYOND_BUDGET,
            )
        return scores

    def _is_vouched_for(self, author: PeerId) -> bool:
        return self.budgets is None or self.budgets.is_vouched_for(author)

    def count(self, counter: str) -> None:
        """Add one to a counter."""
        self._counts[counter] += 1


def _digest(question_id: str, answer: str) -> bytes:
    """Return a digest of an answer to a question, in 16 bytes."""
    return hashlib.blake2b(f"{question_id}\0{answer}".encode(errors="surrogatepass"), digest_size=16).digest()
