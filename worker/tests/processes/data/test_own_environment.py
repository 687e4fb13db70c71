"""An author's own environment, installed under the entry-point group `swarmgame.environments`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from swarmgame import ComponentContext, Contribution, GameState, Group, Rollout, Round
from swarmgame.data.environment_catalog import catalog  # noqa: F401 — the module must be importable without reasoning-gym being loaded
from swarmgame.data.reasoning_gym import ReasoningGymConfig, ReasoningGymData
from swarmgame.errors import InvalidManifest
from swarmgame.rewards.reasoning_gym import ReasoningGymRewards

MODULE = '''
from random import Random
from swarmgame import Config
from swarmgame.data.environments import Environment, GeneratedQuestion

class Doubling(Environment):
    """Questions about twice a number."""

    class Config(Config):
        largest: int = 9

    def make(self, random: Random) -> GeneratedQuestion:
        number = random.randint(1, self.config.largest)
        return GeneratedQuestion(f"twice {number}", str(2 * number), {"number": number})

    def score(self, answer, question):
        return 1.0 if eval(answer) == 2 * question.metadata["number"] else 0.0
'''


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("installed")
    (folder / "doubling_environment.py").write_text(MODULE)
    information = folder / "doubling_environment-1.0.dist-info"
    information.mkdir()
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: doubling-environment\nVersion: 1.0\n")
    (information / "entry_points.txt").write_text(
        "[swarmgame.environments]\ndoubling = doubling_environment:Doubling\n"
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        yield folder


def data_of(config: dict[str, object]) -> ReasoningGymData:
    environments = [{"name": "doubling", "config": config}]
    return ReasoningGymData(
        ReasoningGymConfig.model_validate({"environments": environments, "questionsPerRound": 4}), ComponentContext()
    )


def test_it_is_used_resolved_demonstrated_and_scored_like_any_other(installed: Path) -> None:
    data, reader, rewards = data_of({"largest": 50}), data_of({"largest": 50}), ReasoningGymRewards()
    try:
        round = Round(number=0, seed=1, peer_seed=2, stages=1, peer="a", members=("a",))
        questions = data.round_data(round)
        assert [reader.resolve(question.reference) for question in questions] == list(questions)
        assert data.demonstrate(1, 3)[0].prompt.text.startswith("twice ")
        rollouts = (Rollout(questions[0].answer), Rollout("1 + 0"), Rollout("__import__('os').getpid()"))
        group = Group(data.prompt(questions[0]), rollouts)
        state = GameState.begin(round, questions).with_contribution(
            Contribution("a", 0, 0, (group,), {questions[0].id: questions[0].reference})
        )
        assert list(rewards.rewards(state).values()) == [[1.0, 0.0, 0.0]]
        assert rewards.counters()["sandbox_program"] >= 1
    finally:
        for part in (data, reader, rewards):
            part.close()


def test_its_configuration_is_checked_by_its_own_model(installed: Path) -> None:
    with pytest.raises(InvalidManifest) as caught:
        data_of({"largest": "many"})
    assert caught.value.problems[0].path == "spec.game.data.with.environments[0].config.largest"
