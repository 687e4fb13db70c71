"""`swarmgame validate` finds what would end a run later: each mistake is one sentence, code 78, and nothing is left."""

from __future__ import annotations

from pathlib import Path

import pytest

from swarmgame.cli.main import run_command
from swarmgame.errors import ExitCode

GAME = """
apiVersion: swarmgame.dev/v1alpha1
kind: SwarmGame
metadata: {name: small}
spec:
  peers: {replicas: 2}
  game:
    maxRounds: 3
    data: {use: text, with: {source: questions.jsonl, questionsPerRound: 4}}
    rewards: {use: function, with: {function: "author_of_mistakes:good"}}
    trainer: {use: policy-gradient, with: {actions: 4, options: {inputs: 1, hidden: 4}}}
"""
AUTHOR = """
import swarmgame
from swarmgame import DataManager, RewardManager

def good(question, text):
    return text == question["answer"]

def wrong(question, text):
    return question["anwser"]

def two(question):
    return 1.0

class Half(DataManager):
    def round_data(self, round):
        return []

class Raising(RewardManager):
    pass

class Plain(DataManager):
    def round_data(self, round):
        return [swarmgame.Question(swarmgame.QuestionRef("plain", "", round.peer_seed, 0), "1 + 1", "2")]

    def resolve(self, reference):
        return swarmgame.Question(reference, "1 + 1", "2")

    def stage_inputs(self, state, stage):
        return [swarmgame.Prompt.from_question(q, f"{state.round.peer}: {q.text}") for q in state.questions.values()]
"""


@pytest.fixture
def game(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    rows = [f'{{"question": "{number}", "answer": "{number % 4}"}}' for number in range(40)]
    (tmp_path / "questions.jsonl").write_text("\n".join(rows) + "\n")
    (tmp_path / "author_of_mistakes.py").write_text(AUTHOR)
    (tmp_path / "game.yaml").write_text(GAME)
    monkeypatch.chdir(tmp_path)
    return tmp_path / "game.yaml"


def validated(game: Path, capsys: pytest.CaptureFixture[str], *overrides: str) -> tuple[int, str]:
    before = sorted(path.name for path in game.parent.iterdir() if path.name != "__pycache__")
    code = run_command(["validate", str(game), *(f"--set={override}" for override in overrides)])
    assert sorted(path.name for path in game.parent.iterdir() if path.name != "__pycache__") == before
    return code, capsys.readouterr().err


def test_a_sound_game_passes_without_a_warning(game: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, message = validated(game, capsys)
    assert code == ExitCode.DONE
    assert "warning" not in message


@pytest.mark.parametrize(
    ("override", "found"),
    [
        ("game.rewards.with.function=author_of_mistakes:nothere", "has no attribute 'nothere'"),
        ("game.rewards.with.function=nowhere_at_all:score", "No module named 'nowhere_at_all'"),
        ("game.rewards.with.function=author_of_mistakes:wrong", "KeyError: 'anwser' at author_of_mistakes.py:9"),
        ("game.rewards.with.function=author_of_mistakes:two", "two() takes 1 positional argument but 2 were given"),
        (
            "game.rewards={use: reasoning-gym}",
            'spec.game.rewards.use is "reasoning-gym"; expected rewards for this data',
        ),
        ("game.rewards={use: exat}", 'did you mean "exact"?'),
        ("game.rewards={use: 'author_of_mistakes:Nothing'}", "it has Half, Plain, Raising"),
        (
            "game.rewards={use: 'author_of_mistakes:Raising'}",
            "expected a class with every method of swarmgame.RewardManager; it lacks rewards",
        ),
        (
            "game.rewards={use: composite, with: {rewards: [{use: 'author_of_mistakes:Raising'}]}}",
            'spec.game.rewards.with.rewards[0].use is "author_of_mistakes:Raising"; expected a class with every method',
        ),
        (
            "game.data={use: 'author_of_mistakes:Half'}",
            "expected a class with every method of swarmgame.DataManager; it lacks resolve, stage_inputs",
        ),
        (
            "game.data={use: 'author_of_mistakes:Plain', with: {rows: 3}}",
            "spec.game.data.with.rows is not a field; expected no options: this takes none",
        ),
        ("game.trainer={use: grpo}", "spec.model is missing; expected a model, which the trainer grpo trains"),
        (
            "game.data={use: reasoning-gym, with: {environments: [{name: chain_sum, curriculum: {startLevel: 99}}]}}",
            "spec.game.data.with.environments[0].curriculum.startLevel is 99; expected a level from 0 to ",
        ),
        (
            "game.data={use: reasoning-gym, with: {environments: [{name: chain_sum, curriculum: {maxLevel: 99}}]}}",
            "spec.game.data.with.environments[0].curriculum.maxLevel is 99; expected a level from 0 to ",
        ),
    ],
)
def test_a_mistake_is_one_message_and_code_78(
    game: Path, capsys: pytest.CaptureFixture[str], override: str, found: str
) -> None:
    code, message = validated(game, capsys, override)
    assert code == ExitCode.BAD_CONFIG
    assert found in message


def test_the_traceback_of_a_failing_reward_function_has_the_authors_lines_only(
    game: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, message = validated(game, capsys, "game.rewards.with.function=author_of_mistakes:wrong")
    assert 'return question["anwser"]' in message
    assert "swarmgame/sandbox" not in message


def test_prompts_that_other_peers_will_refuse_are_a_warning(game: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shared = ("game.data={use: 'author_of_mistakes:Plain'}", "game.sharing.externalGroups=4")
    code, message = validated(game, capsys, *shared)
    assert code == ExitCode.DONE
    assert (
        "warning: Plain.stage_inputs makes another prompt for the same question when another peer calls it" in message
    )
    assert "warning" not in validated(game, capsys, *shared, "peers.replicas=1")[1]
