"""What a peer's game rests on: what makes another fingerprint, and what a resume compares."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest

from swarmgame.errors import BadData
from swarmgame.game.sources import Sources, differences
from swarmgame.observability.run_directory import RunDirectory
from swarmgame.runtime.assembly import check, context_of, resolve_game
from swarmgame.runtime.checkpoint import Checkpoint
from swarmgame.runtime.repeatable import Played, first_difference, play
from swarmgame.runtime.sources import check_resume, sources_of
from swarmgame_api.errors import InvalidManifest
from swarmgame_api.load import manifest_data
from swarmgame_api.manifest import SwarmGame
from swarmgame_api.yaml_io import load_documents

GUESSING = "swarmgame.environments.number_guessing:NumberGuessing"
ROWS = "question,answer\n" + "\n".join(f"what is {n}?,{n}" for n in range(40)) + "\n"


def game(
    folder: Path, rows: str = ROWS, *, stages: int = 1, rewards: Any = None, environment: Any = None, **options: Any
) -> SwarmGame:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "rows.csv").write_text(rows)
    data = {"use": "text", "with": {"source": "rows.csv", "questionsPerRound": 2, **options}}
    return SwarmGame.model_validate(
        {
            "apiVersion": "swarmgame.dev/v1alpha1",
            "kind": "SwarmGame",
            "metadata": {"name": "words"},
            "spec": {
                "game": {
                    "maxRounds": 2,
                    "stages": stages,
                    "data": data,
                    "rewards": rewards or {"use": "exact"},
                    "trainer": {"use": "policy-gradient", "with": {"actions": 4}},
                    **({"environment": environment} if environment is not None else {}),
                }
            },
        }
    )


def sources(folder: Path, manifest: SwarmGame, model: str = "") -> Sources:
    resolved = resolve_game(manifest, folder)
    data: Any = resolved.data.component(resolved.data.config, context_of(manifest, folder=folder))
    return sources_of(manifest, resolved, data, model)


def differing(folder: Path, *manifests: SwarmGame) -> set[str]:
    one, other = (sources(folder, manifest) for manifest in manifests)
    return {each.name for each in differences(one, other)}


PARTS = [{"use": "exact"}, {"use": "environment", "weight": 0.5}]


@pytest.mark.parametrize("rewards", [PARTS[1], {"use": "composite", "with": {"rewards": PARTS}}])
def test_rewards_of_an_environment_need_one_alone_and_as_a_part(tmp_path: Path, rewards: Any) -> None:
    rewards = {key: value for key, value in rewards.items() if key != "weight"}
    with pytest.raises(InvalidManifest, match=r"spec\.game\.environment .*an environment, whose rewards these are"):
        check(game(tmp_path, rewards=rewards), tmp_path)


def test_what_each_peer_chooses_itself_makes_no_other_game(tmp_path: Path) -> None:
    here = sources(tmp_path / "here", game(tmp_path / "here"))
    there = tmp_path / "there"
    chosen = game(there, questionsPerRound=3, shared=True, source=str(there / "rows.csv"))
    assert sources(there, chosen) == here
    assert here.model == ""


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("data", {"promptTemplate": "Q: {question}"}),
        ("data", {"heldOut": 0.2}),
        ("data", {"rows": ROWS.replace("what is 7?", "what is seven?")}),
        ("rounds", {"stages": 2}),
        ("rewards", {"rewards": {"use": "exact", "with": {"match": "number"}}}),
        ("rounds", {"environment": {"use": "number-guessing"}}),
    ],
)
def test_other_questions_rounds_or_rewards_make_another_game(tmp_path: Path, name: str, options: Any) -> None:
    before = sources(tmp_path, game(tmp_path))
    after = sources(tmp_path, game(tmp_path, **options))
    assert {each.name for each in differences(before, after)} == {name}


@pytest.mark.parametrize(
    "options", [{"with": {"perTurn": 0.2}}, {"maxTurns": 3}, {"maxObservationTokens": 8}, {"use": GUESSING}]
)
def test_other_turns_make_another_game(tmp_path: Path, options: Any) -> None:
    before = game(tmp_path, environment={"use": "number-guessing"})
    assert differing(tmp_path, before, game(tmp_path, environment={"use": "number-guessing", **options})) == {"rounds"}


def test_the_code_of_an_environment_is_of_the_game(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    code = (
        "from swarmgame.environments.number_guessing import NumberGuessing\n\n\nclass Mine(NumberGuessing):\n    pass\n"
    )
    (tmp_path / "turns_of_mine.py").write_text(code)
    manifest = game(tmp_path, environment={"use": "turns_of_mine:Mine"})
    before = sources(tmp_path, manifest)
    (tmp_path / "turns_of_mine.py").write_text(code.replace("pass", "more = 1"))
    assert {each.name for each in differences(before, sources(tmp_path, manifest))} == {"code"}


def test_another_reward_function_is_other_code_and_limits_of_a_machine_are_not(tmp_path: Path) -> None:
    def with_function(text: str, **options: Any) -> Sources:
        (tmp_path / "mine.py").write_text(text)
        rewards = {"use": "function", "with": {"function": "mine:score", **options}}
        composite = {"use": "composite", "with": {"rewards": [{**rewards, "weight": 1.0}]}}
        return sources(tmp_path, game(tmp_path, rewards=composite))

    before = with_function("def score(question, text):\n    return 1.0\n", deadlineSeconds=2)
    assert with_function("def score(question, text):  # a remark\n    return 1.0\n", deadlineSeconds=9) == before
    after = with_function("def score(question, text):\n    return 0.0\n")
    assert {each.name for each in differences(before, after)} == {"code"}


# ── resume
OURS = Sources(*(digit * 16 for digit in "12345"))


def saved(sources: Any, **trainer: str) -> Checkpoint:
    return Checkpoint(3, {"sources": sources, "trainer": trainer}, Path("round-00000003"))


def test_a_run_does_not_go_on_over_another_base_model(caplog: pytest.LogCaptureFixture) -> None:
    theirs = OURS.as_json() | {"model": "e" * 16}
    with pytest.raises(BadData) as caught:
        check_resume(saved(theirs, commit="c0ffee"), OURS, "hf://me/model")
    for part in (
        "it was hf://me/model with the fingerprint eeeeeeee, and is hf://me/model with the fingerprint 55555555 now",
        "revision to c0ffee",
        "--fresh",
    ):
        assert part in str(caught.value)
    with pytest.raises(BadData, match=r"name builtin://tiny in spec\.model\.uri"):
        check_resume(saved(theirs, model="builtin://tiny"), OURS, "hf://me/model")
    check_resume(saved(OURS.as_json()), OURS, "hf://me/model")
    check_resume(Checkpoint(3, {}, Path("round-00000003")), OURS, "hf://me/model")
    assert caplog.text == ""


def test_other_code_is_named_when_a_run_goes_on(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        check_resume(saved(OURS.as_json() | {"code": "c" * 16}), OURS, "")
    assert "the game has changed since round-00000003 (code: cccccccc then, 33333333 now)" in caplog.text


def test_a_run_may_name_the_commit_of_its_model_later(tmp_path: Path) -> None:
    def manifest(**model: str) -> dict[str, Any]:
        data = manifest_data(game(tmp_path))
        data["spec"]["model"] = {"uri": "hf://me/model", **model}
        return data

    directory = RunDirectory(tmp_path / "run")
    directory.root.mkdir()
    directory.keep_manifest(manifest())
    directory.refuse_other_game(manifest(revision="c0ffee"))


def test_a_kept_manifest_is_read_again_as_it_was(tmp_path: Path) -> None:
    data = manifest_data(game(tmp_path))
    data["metadata"]["annotations"] = {"n": "y", "number": "1e3", "octal": "0o10", "upper": "0X1F"}
    directory = RunDirectory(tmp_path / "run")
    directory.root.mkdir()
    directory.keep_manifest(data)
    assert load_documents(directory.manifest.read_text()) == [data]
    directory.refuse_other_game(data)


# ── played twice


def test_a_played_game_names_its_questions_prompts_and_rows(tmp_path: Path) -> None:
    found = list(play(game(tmp_path), tmp_path))
    assert list(play(game(tmp_path), tmp_path)) == found
    assert {each.method for each in found} == {"round_data", "stage_inputs", "resolve", "evaluation_data"}
    first = found[0]
    assert (first.where, first.method) == ("round 0, question 0", "round_data")
    assert first.fields["question"] == f"what is {first.row}?"
    assert first.fields["metadata.answer"] == f'"{first.row}"'


def test_the_first_difference_is_named_with_field_row_and_line() -> None:
    class Data:
        def round_data(self) -> None: ...

    def played(answer: str, row: int = 4) -> Played:
        return Played("round 0, question 1", "round_data", row, {"question": "q", "answer": answer})

    same = [played("1"), played("2")]
    assert first_difference(same, same, Data) == ""  # type: ignore[arg-type]
    text = first_difference(same, [played("1"), played("3")], Data, lambda row: f"rows.csv, line {row + 2}")  # type: ignore[arg-type]
    assert "round 0, question 1 (rows.csv, line 6): answer is '2' in one process and '3' in another" in text
    assert "Data.round_data at " in text
    assert "test_sources.py:" in text
    assert "only one of two processes has it" in first_difference(same, same[:1], Data)  # type: ignore[arg-type]
