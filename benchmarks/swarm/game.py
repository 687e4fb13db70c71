"""The benchmark's game on SwarmGame's interfaces: the questions, prompts and reward of GenRL's arm, word for word.

The three-stage game asks what GenRL's multistage_math asks; its long system prompts come from GenRL's package at run
time (`prompts.json` beside the work), so that both arms read prompts of one length. Without that file (a smoke run)
each is a placeholder of the same number of words.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from work import Work, reward

from swarmgame import (
    ComponentContext,
    Config,
    DataManager,
    GameState,
    GroupKey,
    Message,
    Prompt,
    Question,
    QuestionRef,
    RewardManager,
    Round,
)

PLACEHOLDER_WORDS = (118, 188, 150)


class WorkConfig(Config):
    """Where the work is."""

    folder: Path
    """The folder that `Work.make` wrote."""


class WorkData(DataManager):
    """All peers ask the same questions in a round."""

    Config = WorkConfig

    def __init__(self, config: WorkConfig, context: ComponentContext) -> None:
        super().__init__(config, context)
        self.work = Work.read(config.folder)
        prompts = config.folder / "prompts.json"
        self.system: Sequence[str] = [""]
        if self.work.game.stages > 1:
            self.system = (
                json.loads(prompts.read_text())
                if prompts.exists()
                else ["word " * words for words in PLACEHOLDER_WORDS]
            )

    def round_data(self, round: Round) -> Sequence[Question]:
        return [self._question(round.number, index) for index in range(self.work.game.questions)]

    def resolve(self, reference: QuestionRef) -> Question | None:
        if (reference.environment, reference.config) != ("work", "") or reference.index >= self.work.game.questions:
            return None
        return self._question(reference.seed, reference.index)

    def stage_inputs(self, state: GameState, stage: int) -> Sequence[Prompt]:
        return [self._prompt(state, stage, question) for question in state.questions.values()]

    def _question(self, round: int, index: int) -> Question:
        asked = self.work.questions(round)[index]
        return Question(QuestionRef("work", "", round, index), text=asked.question, answer=asked.answer)

    def _prompt(self, state: GameState, stage: int, question: Question) -> Prompt:
        words = question.text if stage == 0 else self._solutions(state, question)
        if stage == 2:
            words += (
                "  \nAfter comparing these solutions, the following feedback was given about which answer is best: \n"
            )
            words += "".join(
                f"--> Criticism #{number} was: {text}\n\n" for number, text in enumerate(_said(state, 1, question))
            )
            words += 'Remember to think through your solution step by step and put your answer on its own line after "Answer:".\n\n'
        return Prompt(question.id, (Message("system", self.system[stage]), Message("user", words)))

    def _solutions(self, state: GameState, question: Question) -> str:
        words = f"The given math problem is: {question.text}  \n\nThe following solutions were suggested for this problem: \n"
        words += "".join(
            f"--> Student #{number} said: {text}\n\n" for number, text in enumerate(_said(state, 0, question))
        )
        choose = 'Remember to choose an appropriate "Student #" (or say None), explain your choice, '
        return words + choose + 'put your final choice on its own line after "Choice:".\n\n'


class WorkRewards(RewardManager):
    """The hash of each text, in this process: GenRL's arm has no sandbox either."""

    def __init__(self, config: Any, context: ComponentContext) -> None:
        super().__init__(config, context)

    def rewards(self, state: GameState) -> Mapping[GroupKey, Sequence[float]]:
        return {key: [reward(rollout.text) for rollout in group.rollouts] for key, group in state.groups()}


def _said(state: GameState, stage: int, question: Question) -> list[str]:
    return [rollout.text for _, group in state.groups_for(stage, question.id) for rollout in group.rollouts]
