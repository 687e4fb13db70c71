"""The `reasoning-gym` data: streams that share nothing, references that anybody resolves, errors with a path."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest

from swarmgame import ComponentContext, Contribution, GameState, Group, GroupKey, Question, QuestionRef, Rollout, Round
from swarmgame.data.reasoning_gym import ReasoningGymConfig, ReasoningGymData
from swarmgame.errors import InvalidManifest
from swarmgame.sandbox.client import Sandbox

Make = Callable[..., ReasoningGymData]
SUMS = {"name": "chain_sum"}
SPELLING = {"name": "spell_backward", "config": {"min_word_len": 3, "max_word_len": 4}}


@pytest.fixture
def make(sandbox: Sandbox) -> Iterator[Make]:
    made = []

    def made_of(environments: list[dict[str, Any]], seed: int = 1, **rest: Any) -> ReasoningGymData:
        data = ReasoningGymData(
            ReasoningGymConfig.model_validate({"environments": environments, **rest}), ComponentContext(seed=seed)
        )
        made.append(data)
        return data

    yield made_of
    for data in made:
        data.close()


def a_round(number: int = 0, peer: str = "a", **rest: Any) -> Round:
    return Round(
        number=number,
        seed=100 + number,
        peer_seed=sum(map(ord, peer)) + 7 * number,
        stages=1,
        peer=peer,
        members=("a", "b"),
        **rest,
    )


def test_questions_are_a_function_of_the_round_and_the_peer(make: Make) -> None:
    one, other = make([SUMS, SPELLING]), make([SUMS, SPELLING])
    assert one.round_data(a_round()) == other.round_data(a_round())
    assert one.round_data(a_round(peer="b")) != one.round_data(a_round(peer="a"))
    assert one.round_data(a_round(1)) != one.round_data(a_round(0))


def test_questions_that_were_made_ahead_are_not_made_twice(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    data = make([SUMS, SPELLING])
    made = data.round_data(a_round())
    made_again: list[int] = []
    monkeypatch.setattr(data, "_call", lambda levels, seeds, function="make": made_again.append(len(levels)) or [])
    assert data.round_data(a_round()) == made
    assert sum(made_again) == 0


def test_shared_questions_are_the_same_for_all_peers(make: Make) -> None:
    data = make([SUMS, SPELLING], shared=True)
    assert data.round_data(a_round(peer="a")) == data.round_data(a_round(peer="b"))


def test_another_peer_regenerates_the_same_question_from_its_reference(make: Make) -> None:
    mix = [
        SUMS,
        SPELLING,
        {"name": "word_ladder"},
        {"name": "isomorphic_strings"},
        {"name": "polynomial_multiplication"},
        {"name": "knight_swap"},
    ]
    author, reader = make(mix, questionsPerRound=12), make(list(reversed(mix)))
    for question in author.round_data(a_round()):
        again = reader.resolve(question.reference)
        assert again is not None
        assert (again.id, again.text, again.answer) == (question.id, question.text, question.answer)


def test_rounds_evaluation_and_demonstrations_never_share_a_question(make: Make) -> None:
    data = make(
        [{"name": "chain_sum", "config": {"min_terms": 4, "max_terms": 6, "min_digits": 4, "max_digits": 6}}],
        questionsPerRound=64,
    )
    rounds = [question for number in range(4) for peer in "ab" for question in data.round_data(a_round(number, peer))]
    evaluation = list(data.evaluation_data(128))
    demonstrated = data.demonstrate(3, 128)
    ids = [question.id for question in (*rounds, *evaluation)] + [
        example.prompt.question_id for example in demonstrated
    ]
    texts = [question.text for question in (*rounds, *evaluation)] + [example.prompt.text for example in demonstrated]
    assert len(set(ids)) == len(ids) == 8 * 64 + 256
    assert len(set(texts)) == len(texts)


def test_a_reference_to_a_held_out_question_is_refused(make: Make) -> None:
    data = make([SUMS])
    assert data.resolve(data.evaluation_data(1)[0].reference) is None


def test_invalid_references_and_those_of_other_games_are_refused(make: Make) -> None:
    data = make([SUMS])
    good = data.round_data(a_round())[0].reference
    assert data.resolve(good) is not None
    bad = [
        replace(good, environment="gcd"),
        replace(good, environment="no such thing"),
        replace(good, config="0" * 16),
        replace(good, seed=-1),
        replace(good, seed=1 << 62),
        replace(good, seed=1 << 200),
        replace(good, index=1),
        replace(good, index=-1),
        QuestionRef("", "", 0, 0),
    ]
    assert [data.resolve(reference) for reference in bad] == [None] * len(bad)


def test_peers_with_specialties_use_only_their_own_environments(make: Make) -> None:
    data = make([SUMS, SPELLING], specialties=[["chain_sum"], ["spell_backward"]], questionsPerRound=16)
    assert {question.reference.environment for question in data.round_data(a_round(peer="a"))} == {"chain_sum"}
    assert {question.reference.environment for question in data.round_data(a_round(peer="b"))} == {"spell_backward"}


def test_weights_decide_how_often_an_environment_is_drawn(make: Make) -> None:
    data = make([{**SUMS, "weight": 3}, SPELLING], questionsPerRound=400)
    share = sum(question.reference.environment == "chain_sum" for question in data.round_data(a_round())) / 400
    assert 0.68 < share < 0.82


def test_later_stages_use_only_our_own_questions(make: Make) -> None:
    data = make([SUMS], questionsPerRound=2)
    round = a_round()
    own, remote = data.round_data(round), data.round_data(a_round(peer="b"))
    state = GameState.begin(round, own)
    groups = tuple(Group(prompt, (Rollout("7"),)) for prompt in data.stage_inputs(state, 0))
    state = state.with_contribution(
        Contribution("a", 0, 0, groups, {question.id: question.reference for question in own})
    ).with_questions(remote)
    assert len(state.questions) == 4
    assert [prompt.question_id for prompt in data.stage_inputs(state, 1)] == [question.id for question in own]


def test_the_tagged_format_explains_itself_and_the_template_surrounds_the_question(make: Make) -> None:
    data = make([SUMS], answerFormat="tagged", promptTemplate="Q: {question}\nA:")
    question = data.round_data(a_round())[0]
    prompt = data.prompt(question)
    assert "<answer>" in prompt.messages[0].content
    assert prompt.messages[1].content == f"Q: {question.text}\nA:"
    assert data.demonstrate(1, 1)[0].completion.startswith("<answer>")


def test_demonstrations_are_deterministic_and_leave_out_what_has_no_right_answer(make: Make) -> None:
    data = make([SUMS, {"name": "graph_color"}])
    examples = data.demonstrate(5, 40)
    assert len(examples) == 40
    assert examples == data.demonstrate(5, 40)
    assert examples != data.demonstrate(6, 40)
    assert all(example.completion for example in examples)
    assert make([{"name": "graph_color"}]).demonstrate(5, 4) == []


def test_the_fingerprint_tells_games_apart_and_ignores_what_does_not_matter(make: Make) -> None:
    prints = {
        make([SUMS]).fingerprint,
        make([SPELLING]).fingerprint,
        make([SUMS, SPELLING]).fingerprint,
        make([{**SUMS, "config": {"max_terms": 3}}]).fingerprint,
        make([SUMS], answerFormat="tagged").fingerprint,
    }
    assert len(prints) == 5
    assert make([SUMS], questionsPerRound=3).fingerprint == make([SUMS], seed=9).fingerprint


def test_a_composite_draws_from_its_members_and_any_peer_resolves_them(make: Make) -> None:
    parts = [{"name": "gcd"}, {"name": "chain_sum", "weight": 2.0, "config": {"max_terms": 3}}]
    data, reader = (
        make([{"name": "composite", "config": {"datasets": parts}}], questionsPerRound=24) for _ in range(2)
    )
    questions = data.round_data(a_round())
    kinds = {"Greatest Common Divisor" in question.text for question in questions}
    assert kinds == {True, False}
    assert [reader.resolve(question.reference) for question in questions] == list(questions)
    assert len(data.demonstrate(1, 8)) == 8


@pytest.mark.parametrize(
    ("environment", "path", "expected"),
    [
        ({"name": "chain_sums"}, "name", "did you mean chain_sum"),
        ({"name": "chain_sum", "config": {"min_term": 2}}, "config.min_term", "did you mean min_terms"),
        ({"name": "chain_sum", "config": {"min_terms": "2"}}, "config.min_terms", "integer"),
        ({"name": "chain_sum", "config": {"min_terms": -2}}, "config.min_terms", "positive"),
        ({"name": "chain_sum", "config": {"seed": 1}}, "config.seed", "the game sets it"),
        ({"name": "composite", "config": {"datasets": []}}, "config.datasets", "at least one"),
        (
            {"name": "composite", "config": {"datasets": [{"name": "nope"}]}},
            "config.datasets[0].name",
            "name of an environment",
        ),
        ({"name": "acre", "curriculum": {}}, "curriculum", "has a curriculum"),
        ({"name": "chain_sum", "curriculum": {"attributes": ["terms"]}}, "curriculum.attributes", "num_terms"),
    ],
)
def test_a_wrong_environment_is_refused_with_its_path_and_a_suggestion(
    make: Make, environment: dict[str, Any], path: str, expected: str
) -> None:
    with pytest.raises(InvalidManifest) as caught:
        make([SUMS, environment])
    problem = caught.value.problems[0]
    assert problem.path == f"spec.game.data.with.environments[1].{path}"
    assert expected in problem.expected


@pytest.mark.parametrize(
    ("rest", "path"),
    [
        ({"specialties": [["gcd"]]}, "specialties[0]"),
        ({"shared": True, "specialties": [["chain_sum"]]}, "shared"),
        ({"promptTemplate": "no place for it"}, "promptTemplate"),
    ],
)
def test_settings_that_contradict_are_refused(make: Make, rest: dict[str, Any], path: str) -> None:
    with pytest.raises(InvalidManifest) as caught:
        make([SUMS], **rest)
    assert caught.value.problems[0].path == f"spec.game.data.with.{path}"


def play(data: ReasoningGymData, number: int, reward: float) -> list[Question]:
    """A round in which every question earns the same."""
    round = a_round(number)
    questions = list(data.round_data(round))
    state = GameState.begin(round, questions)
    groups = tuple(Group(prompt, (Rollout("x"), Rollout("y"))) for prompt in data.stage_inputs(state, 0))
    state = state.with_contribution(
        Contribution("a", number, 0, groups, {question.id: question.reference for question in questions})
    )
    data.round_finished(state, {GroupKey(number, 0, "a", question.id): [reward, reward] for question in questions})
    return questions


def test_a_curriculum_rises_and_falls_and_peers_at_other_levels_still_understand(make: Make) -> None:
    climbing = [
        {
            "name": "chain_sum",
            "curriculum": {"attributes": ["num_terms"], "window": 4, "maxLevel": 2, "raiseAbove": 0.6},
        }
    ]
    climber, beginner = make(climbing, questionsPerRound=4), make(climbing)
    levels = []
    for number, reward in enumerate([1.0, 1.0, 1.0, 0.5, 0.0]):
        questions = play(climber, number, reward)
        assert [beginner.resolve(question.reference) for question in questions] == questions
        levels.append({question.metadata["level"] for question in questions})
    assert levels == [{0}, {1}, {2}, {2}, {2}]
    assert {question.metadata["level"] for question in play(climber, 5, 0.5)} == {1}


def test_a_curriculum_resumes_where_it_was(make: Make) -> None:
    climbing = [SUMS, {"name": "gcd", "curriculum": {"window": 6}}]
    data, resumed = make(climbing), make(climbing)
    for number in range(3):
        play(data, number, 1.0)
    state = dict(data.state_dict())
    resumed.load_state_dict(state)
    assert resumed.state_dict() == state
    assert [question.reference for question in resumed.round_data(a_round(9))] == [
        question.reference for question in data.round_data(a_round(9))
    ]
    with pytest.raises(ValueError, match="curricula"):
        make([SUMS]).load_state_dict(state)
