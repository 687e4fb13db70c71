"""The base classes of a game's components: what an author need not write."""

from __future__ import annotations

from collections.abc import Sequence

from swarmgame import ComponentContext, Config, DataManager, GameState, Question, QuestionRef, Round

ROUND = Round(number=0, seed=1, peer_seed=2, stages=2, peer="a", members=("a",))


class Letters(DataManager):
    """Two questions, and no prompts of its own."""

    def round_data(self, round: Round) -> Sequence[Question]:
        return [Question(QuestionRef("letters", "", 0, index), text="ab"[index]) for index in range(2)]

    def resolve(self, reference: QuestionRef) -> Question | None:
        return None


def test_prompts_are_our_own_questions_in_every_stage_unless_the_data_says_otherwise() -> None:
    data = Letters(Config(), ComponentContext())
    remote = Question(QuestionRef("letters", "", 0, 2), text="c")
    state = GameState.begin(ROUND, data.round_data(ROUND)).with_questions([remote])
    for stage in range(2):
        assert [prompt.text for prompt in data.stage_inputs(state, stage)] == ["a", "b"]
