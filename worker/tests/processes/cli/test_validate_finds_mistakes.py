"""`swarmgame validate` finds what would end a run later: each mistake is one sentence, code 78, and nothing is left."""

from __future__ import annotations

from pathlib import Path

import pytest
from model_folders import folder

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


class OwnContext(Plain):
    def stage_inputs(self, state, stage):
        peer = self.context.peer
        return [swarmgame.Prompt.from_question(q, f"{peer}: {q.text}") for q in state.questions.values()]
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
        ("game.rewards={use: 'author_of_mistakes:Nothing'}", "it has Half, OwnContext, Plain, Raising"),
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
            "expected a class with every method of swarmgame.DataManager; it lacks resolve",
        ),
        (
            "game.data={use: 'author_of_mistakes:Plain', with: {rows: 3}}",
            "spec.game.data.with.rows is not a field; expected no options: this takes none",
        ),
        (
            "model={uri: 'builtin://tiny', export: {adapters: Separate}}",
            'spec.model.export.adapters is "Separate"; expected Merged: the trainer has no adapters',
        ),
        ("model.export.everyRounds=2", "spec.model.uri is missing; expected hf://organisation/name"),
        ("game.trainer={use: grpo}", "spec.model is missing; expected a model, which the trainer grpo trains"),
        (
            "game.environment={use: number-guessing}",
            'spec.game.trainer.use is "policy-gradient"; expected a trainer that plays with an environment, such as',
        ),
        ("game.rewards={use: environment}", "spec.game.environment is missing; expected an environment, whose rewards"),
        ("game.environment={use: 'author_of_mistakes:Plain'}", "expected a subclass of swarmgame.Environment"),
        (
            "game.environment={use: number-guessing, with: {perTurns: 1}}",
            'spec.game.environment.with.perTurns is not a field; expected a field that exists; did you mean "perTurn"?',
        ),
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


def test_prompts_that_only_their_author_can_make_are_an_error_where_others_train_on_them(
    game: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shared = ("game.data={use: 'author_of_mistakes:Plain'}", "game.sharing.externalGroups=4")
    code, message = validated(game, capsys, *shared)
    assert (code, "warning" in message) == (ExitCode.DONE, False), "others make the prompt as its author"
    own = ("game.data={use: 'author_of_mistakes:OwnContext'}", "game.sharing.externalGroups=4")
    code, message = validated(game, capsys, *own)
    assert code == ExitCode.BAD_CONFIG
    assert "OwnContext.stage_inputs makes another prompt in stage 0 for the same question" in message
    assert validated(game, capsys, *own, "peers.replicas=1")[0] == ExitCode.DONE


def test_sharding_that_has_no_effect_is_a_warning(game: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sharded = (
        "game.trainer={use: grpo, with: {sharding: full}}",
        "model.uri=builtin://tiny",
        "peers.processesPerPeer=1",
    )
    code, message = validated(game, capsys, *sharded)
    assert code == ExitCode.DONE, message
    assert "warning: spec.game.trainer.with.sharding is full, but spec.peers.processesPerPeer is 1" in message


def test_adapters_may_be_kept_apart_where_the_trainer_has_them(game: Path, capsys: pytest.CaptureFixture[str]) -> None:
    separate = ("model={uri: 'builtin://tiny', export: {adapters: Separate}}", "game.trainer={use: grpo}")
    assert validated(game, capsys, *separate)[0] == ExitCode.BAD_CONFIG
    assert validated(game, capsys, *separate, "game.trainer.with={lora: {rank: 4}}")[0] == ExitCode.DONE


def test_a_model_is_loaded_and_tried(game: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from transformers import BertConfig, MptConfig

    bert, mpt = game.parent / "bert", game.parent / "mpt"
    folder(bert, BertConfig)
    folder(mpt, MptConfig, d_model=32, n_layers=2, n_heads=4, max_seq_len=256)
    trained = "game.trainer={use: grpo, with: {maxNewTokens: 16}}"
    code, message = validated(game, capsys, trained, f"model={{uri: 'file://{bert}'}}")
    assert code == ExitCode.BAD_CONFIG
    assert f'spec.model.uri is "file://{bert}"; expected a model that can be sampled and trained here' in message
    assert "BertLMHeadModel cannot: sampling it" in message
    code, message = validated(game, capsys, trained, f"model={{uri: 'file://{mpt}'}}")
    assert code == ExitCode.DONE
    assert "warning: MptForCausalLM: training reads a prompt again for each of its completions" in message
