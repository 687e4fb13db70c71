"""The benchmark's game on SwarmGame's interfaces, with the exact questions, prompts and reward of GenRL's arm.

The three-stage game is GenRL's multistage_math. Its long system prompts come from GenRL's package at run time
(`prompts.json` beside the work), so that both arms read prompts of one length. Without that file (a smoke run) each is
a placeholder of the same length.
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
    """The folder of the work."""

    folder: Path
    """The folder that `Work.make` wrote."""


class WorkData(DataManager):
    """All peers have the same questions in a round."""

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
        source = self.work.questions(round)[index]
        return Question(QuestionRef("work", "", round, index), text=source.question, answer=source.answer)

    def _prompt(self, state: GameState, stage: int, question: Question) -> Prompt:
        content = question.text if stage == 0 else self._solutions(state, question)
        if stage == 2:
            content += (
                "  \nAfter comparing these solutions, the following feedback was given about which answer is best: \n"
            )
            content += "".join(
                f"--> Criticism #{number} was: {text}\n\n" for number, text in enumerate(_answers(state, 1, question))
            )
            content += "Remember to think through your solution step by step and put your answer on its own line "
            content += 'after "Answer:".\n\n'
        return Prompt(question.id, (Message("system", self.system[stage]), Message("user", content)))

    def _solutions(self, state: GameState, question: Question) -> str:
        content = f"The given math problem is: {question.text}  \n\n"
        content += "The following solutions were suggested for this problem: \n"
        content += "".join(
            f"--> Student #{number} said: {text}\n\n" for number, text in enumerate(_answers(state, 0, question))
        )
        choose = 'Remember to choose an appropriate "Student #" (or say None), explain your choice, '
        return content + choose + 'put your final choice on its own line after "Choice:".\n\n'


class WorkRewards(RewardManager):
    """The hash of each text, in this process, because GenRL's arm has no sandbox."""

    def __init__(self, config: Any, context: ComponentContext) -> None:
        super().__init__(config, context)

    def rewards(self, state: GameState) -> Mapping[GroupKey, Sequence[float]]:
        return {key: [reward(rollout.text) for rollout in group.rollouts] for key, group in state.groups()}


def _answers(state: GameState, stage: int, question: Question) -> list[str]:
    return [rollout.text for _, group in state.groups_for(stage, question.id) for rollout in group.rollouts]
