"""The smallest complete game: questions with one-digit answers, and a policy that is a table. The components implement
the real interfaces, without torch.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from typing import Any

from swarmgame import (
    ComponentContext,
    Config,
    DataManager,
    FinishReason,
    GameState,
    Group,
    GroupKey,
    Prompt,
    Question,
    QuestionRef,
    RewardManager,
    Rollout,
    Round,
    Trainer,
)
from swarmgame.seeds import derive_seed

CHOICES = 4


class ToyData(DataManager):
    """`questions` questions a round; the answer is the seed modulo four. Later stages list the earlier answers."""

    class Config(Config):
        questions: int = 3
        shared: bool = False

    def __init__(self, config: Config | None = None, context: ComponentContext | None = None) -> None:
        super().__init__(config or ToyData.Config(), context or ComponentContext())

    def round_data(self, round: Round) -> Sequence[Question]:
        seed = derive_seed(round.seed if self.config.shared else round.peer_seed, "toy")
        return [
            self._question(QuestionRef("toy", "v1", derive_seed(seed, index), index))
            for index in range(self.config.questions)
        ]

    def evaluation_data(self, count: int) -> Sequence[Question]:
        return [
            self._question(QuestionRef("toy", "v1", derive_seed("held-out", index), index)) for index in range(count)
        ]

    def resolve(self, reference: QuestionRef) -> Question | None:
        return self._question(reference) if (reference.environment, reference.config) == ("toy", "v1") else None

    def stage_inputs(self, state: GameState, stage: int) -> Sequence[Prompt]:
        questions = (state.questions[question_id] for question_id in state.question_ids)
        return [
            Prompt.from_question(question, self._text(state, stage, question))
            for question in questions
            if stage == 0 or state.groups_for(stage - 1, question.id)
        ]

    def _text(self, state: GameState, stage: int, question: Question) -> str:
        if stage == 0:
            return question.text
        answers = [f"{peer}: {group.rollouts[0].text}" for peer, group in state.groups_for(stage - 1, question.id)]
        return "\n".join([question.text, *answers])

    def _question(self, reference: QuestionRef) -> Question:
        kind = reference.seed % CHOICES
        return Question(reference, text=f"which digit follows {kind - 1}?", answer=str(kind))


class ToyRewards(RewardManager):
    """One for the right digit."""

    def __init__(self, config: Any = None, context: ComponentContext | None = None) -> None:
        super().__init__(config, context or ComponentContext())

    def rewards(self, state: GameState) -> Mapping[GroupKey, Sequence[float]]:
        return {
            key: [float(r.text == state.questions[group.question_id].answer) for r in group.rollouts]
            for key, group in state.groups()
        }


class ToyTrainer(Trainer):
    """A softmax policy in a table: question → four logits. REINFORCE with the group's mean as the baseline."""

    class Config(Config):
        generations: int = 4
        learning_rate: float = 1.0

    def __init__(self, config: Config | None = None, context: ComponentContext | None = None) -> None:
        super().__init__(config or ToyTrainer.Config(), context or ComponentContext())
        self.table: dict[str, list[float]] = {}
        self.updates = 0
        self.trained: list[GroupKey] = []

    @property
    def policy_version(self) -> int:
        return self.updates

    @property
    def tokenizer(self) -> str:
        return "digits"

    def _logprobs(self, question: str) -> list[float]:
        logits = self.table.get(question, [0.0] * CHOICES)
        total = math.log(sum(math.exp(logit) for logit in logits))
        return [logit - total for logit in logits]

    def decode(self, token_ids: Sequence[int]) -> str | None:
        return "".join(map(str, token_ids))

    def generate(self, prompts: Sequence[Prompt], round: Round) -> Sequence[Group]:
        rng = random.Random(derive_seed(round.peer_seed, "sample", round.number, round.stage, int(round.evaluation)))
        groups = []
        for prompt in prompts:
            logprobs = self._logprobs(prompt.text.split("\n")[0])
            picks = rng.choices(range(CHOICES), [math.exp(lp) for lp in logprobs], k=self.config.generations)
            groups.append(
                Group(
                    prompt, tuple(Rollout(str(pick), (pick,), (logprobs[pick],), FinishReason.STOP) for pick in picks)
                )
            )
        return groups

    def train(self, state: GameState, rewards: Mapping[GroupKey, Sequence[float]]) -> Mapping[str, float]:
        chosen = [*state.own_groups(), *((key, state.group_of(key)) for key in state.external)]
        self.trained += [key for key, _ in chosen]
        for key, group in chosen:
            mean = sum(rewards[key]) / len(rewards[key])
            logits = self.table.setdefault(group.prompt.text.split("\n")[0], [0.0] * CHOICES)
            for reward, rollout in zip(rewards[key], group.rollouts, strict=True):
                logits[rollout.token_ids[0]] += self.config.learning_rate * (reward - mean)
        self.updates += 1
        return {"groups_trained": float(len(chosen))}

    def state_dict(self) -> Mapping[str, Any]:
        return {"table": {question: list(logits) for question, logits in self.table.items()}, "updates": self.updates}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.table = {question: list(logits) for question, logits in state["table"].items()}
        self.updates = state["updates"]
