"""`swarmgame validate`: shows every mistake, prints what will be used, starts nothing and writes nothing."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import yaml

from swarmgame import Config
from swarmgame.cli.validate import check_game, summary, validate
from swarmgame.runtime.assembly import resolved_data
from swarmgame_api import InvalidManifest, SwarmGame, load_manifest, loads_manifest
from swarmgame_api.reference import MINIMAL


class TrainerConfig(Config):
    learning_rate: float = 1e-3
    clip: float | None = 1.0


@pytest.fixture
def checked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[SwarmGame, Path]]:
    """Replace the second step of the check by components that load in milliseconds; records its calls."""
    calls: list[tuple[SwarmGame, Path]] = []

    def check(manifest: SwarmGame, folder: Path, *, load_model: bool) -> SimpleNamespace:
        calls.append((manifest, folder))
        if manifest.spec.game.trainer.use == "no-such-trainer":
            raise InvalidManifest("spec.game.trainer.use", "no-such-trainer", "one of grpo")
        config = TrainerConfig.model_validate(manifest.spec.game.trainer.with_)
        return SimpleNamespace(
            data=SimpleNamespace(config=Config()),
            rewards=SimpleNamespace(config=Config()),
            trainer=SimpleNamespace(config=config),
            warnings=(),
            trackers=(),
        )

    assembly = ModuleType("swarmgame.runtime.assembly")
    assembly.check = check  # type: ignore[attr-defined]
    assembly.resolved_data = resolved_data  # type: ignore[attr-defined]
    monkeypatch.setitem(__import__("sys").modules, "swarmgame.runtime.assembly", assembly)
    return calls


@pytest.fixture
def game(tmp_path: Path) -> Path:
    path = tmp_path / "game.yaml"
    path.write_text(MINIMAL)
    return path


def test_the_resolved_manifest_goes_to_standard_output_and_the_summary_to_standard_error(
    game: Path, checked: list[tuple[SwarmGame, Path]], capsys: pytest.CaptureFixture[str]
) -> None:
    validate(game, ["game.maxRounds=7"])
    out, err = capsys.readouterr()
    assert yaml.safe_load(out)["spec"]["game"]["maxRounds"] == 7
    assert err.strip() == (
        f"✓ {game}: sums is valid · 7 rounds of 1 stage · 4 peers · data reasoning-gym, rewards reasoning-gym, "
        "trainer grpo · model builtin://tiny"
    )
    assert checked[0][1] == game.parent


def test_what_is_printed_validates_again_with_the_defaults_of_the_components_filled_in(
    game: Path, checked: list[tuple[SwarmGame, Path]], capsys: pytest.CaptureFixture[str]
) -> None:
    validate(game, ["game.trainer.with={clip: null}", "game.data.with=null"])
    printed = capsys.readouterr().out
    again = loads_manifest(printed)
    assert again.spec.game.trainer.with_ == {"learningRate": 1e-3, "clip": None}
    assert again.spec.peers == checked[0][0].spec.peers
    game.write_text(printed)
    validate(game)
    assert capsys.readouterr().out == printed


def test_nothing_is_written(game: Path, checked: list[tuple[SwarmGame, Path]]) -> None:
    validate(game)
    assert [path.name for path in game.parent.iterdir()] == ["game.yaml"]


def test_a_mistake_in_the_file_is_found_before_any_component_is_imported(
    game: Path, checked: list[tuple[SwarmGame, Path]]
) -> None:
    with pytest.raises(InvalidManifest, match=r'spec\.game\.maxRound is not a field; .*did you mean "maxRounds"\?'):
        validate(game, ["game.maxRound=7"])
    assert checked == []


def test_a_mistake_in_a_component_names_the_file_too(game: Path, checked: list[tuple[SwarmGame, Path]]) -> None:
    with pytest.raises(InvalidManifest) as caught:
        check_game(game, ["game.trainer.use=no-such-trainer"])
    assert str(caught.value) == f'{game}: spec.game.trainer.use is "no-such-trainer"; expected one of grpo'


def test_the_summary_of_a_game_without_a_model_says_so(game: Path) -> None:
    text = summary(load_manifest(game, ["model=null", "peers.replicas=1", "game.stages=3", "game.maxRounds=1000"]))
    assert text.startswith("sums is valid · 1,000 rounds of 3 stages · 1 peer · ")
    assert text.endswith("a model of the trainer's own")
