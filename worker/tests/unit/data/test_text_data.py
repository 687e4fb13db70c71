"""The `text` data: every way to read rows, one split, references by number."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from swarmgame import ComponentContext, GameState, Round
from swarmgame.data.dataset import Side
from swarmgame.data.text import TextConfig, TextData
from swarmgame.errors import BadData, InvalidManifest

ROWS = [{"question": f"What is {n} + {n}?", "answer": f"because #### {2 * n}", "level": str(n % 3)} for n in range(60)]
ROUND = Round(number=0, seed=1, peer_seed=2, stages=1, peer="a", members=("a", "b"))


def text(source: Path | str, **rest: Any) -> TextData:
    return TextData(TextConfig.model_validate({"source": str(source), **rest}), ComponentContext(seed=3))


def json_lines(folder: Path, rows: list[dict[str, str]] = ROWS) -> Path:
    path = folder / "rows.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


def comma_separated(folder: Path) -> Path:
    path = folder / "rows.csv"
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, ["question", "answer", "level"])
        writer.writeheader()
        writer.writerows(ROWS)
    return path


def parquet(folder: Path) -> Path:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    path = folder / "rows.parquet"
    parquet.write_table(pyarrow.Table.from_pylist(ROWS), path)
    return path


def saved_dataset(folder: Path) -> Path:
    datasets = pytest.importorskip("datasets")
    datasets.Dataset.from_list(ROWS).save_to_disk(folder / "saved")
    return folder / "saved"


def text_files(folder: Path) -> Path:
    for number, row in enumerate(ROWS):
        (folder / f"{number:03}.txt").write_text(f"{row['question']}\n---\n{row['answer']}\n")
    return folder


@pytest.mark.parametrize("write", [json_lines, comma_separated, parquet, saved_dataset, text_files])
def test_every_kind_of_source_gives_the_same_questions(write: Any, tmp_path: Path) -> None:
    data = text(write(tmp_path), questionsPerRound=5, answerAfter="####")
    questions = data.round_data(ROUND)
    assert len({question.id for question in questions}) == 5
    for question in questions:
        number = int(question.text.split()[2])
        assert question.answer == str(2 * number)
    assert data.digest == text(json_lines(tmp_path), answerAfter="####").digest


def test_sides_are_disjoint_duplicates_included_and_the_same_for_all(tmp_path: Path) -> None:
    data = text(json_lines(tmp_path, ROWS + ROWS), heldOut=0.3, demonstrations=0.3)
    sides = {
        side: {data.question(data._question(row).reference).text for row in rows} for side, rows in data.rows.items()
    }
    assert all(sides.values())
    assert not sides[Side.ROUND] & sides[Side.EVALUATION]
    assert not sides[Side.ROUND] & sides[Side.DEMONSTRATION]
    assert not sides[Side.EVALUATION] & sides[Side.DEMONSTRATION]
    assert data.rows == text(json_lines(tmp_path, ROWS + ROWS), heldOut=0.3, demonstrations=0.3).rows


def test_references_resolve_for_rounds_and_for_nothing_else(tmp_path: Path) -> None:
    author, reader = text(json_lines(tmp_path)), text(json_lines(tmp_path))
    for question in author.round_data(ROUND):
        assert reader.resolve(question.reference) == question
    good, held_out = author.round_data(ROUND)[0].reference, author.evaluation_data(1)[0].reference
    for bad in (
        held_out,
        replace(good, index=10**9),
        replace(good, index=-1),
        replace(good, config="other"),
        replace(good, seed=5),
    ):
        assert reader.resolve(bad) is None
    (tmp_path / "other").mkdir()
    assert text(json_lines(tmp_path / "other", ROWS[1:])).resolve(good) is None


def test_peers_draw_their_own_rows_unless_they_share(tmp_path: Path) -> None:
    path, other = json_lines(tmp_path), replace(ROUND, peer="b", peer_seed=9)
    own, shared = text(path), text(path, shared=True)
    assert own.round_data(ROUND) != own.round_data(other)
    assert shared.round_data(ROUND) == shared.round_data(other)


def test_templates_know_all_columns(tmp_path: Path) -> None:
    data = text(json_lines(tmp_path), promptTemplate="[{level}] {question}", systemPrompt="Be brief.")
    state = GameState.begin(ROUND, data.round_data(ROUND))
    for prompt in data.stage_inputs(state, 0):
        question = state.questions[prompt.question_id]
        assert [message.content for message in prompt.messages] == [
            "Be brief.",
            f"[{question.metadata['level']}] {question.text}",
        ]


def test_demonstrations_come_from_their_own_rows_again_and_again(tmp_path: Path) -> None:
    data = text(json_lines(tmp_path), answerAfter="####", demonstrations=0.2)
    examples = data.demonstrate(1, 200)
    assert len(examples) == 200
    assert examples == data.demonstrate(1, 200)
    askable = {data.question(data._question(row).reference).id for row in data.rows[Side.ROUND]}
    assert not {example.prompt.question_id for example in examples} & askable
    assert text(json_lines(tmp_path), demonstrations=0).demonstrate(1, 5) == []


@pytest.mark.parametrize(
    ("rest", "path"),
    [
        ({"question": "problem"}, "question"),
        ({"answer": "solution"}, "answer"),
        ({"questionsPerRound": 1000}, "questionsPerRound"),
    ],
)
def test_what_the_data_lacks_is_an_invalid_manifest(tmp_path: Path, rest: dict[str, Any], path: str) -> None:
    with pytest.raises(InvalidManifest) as caught:
        text(json_lines(tmp_path), **rest)
    assert caught.value.problems[0].path == f"spec.game.data.with.{path}"


def test_missing_strange_and_empty_sources_are_refused(tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").write_text("\n")
    (tmp_path / "rows.exe").write_text("x")
    for source in ("missing.jsonl", "empty.jsonl", "rows.exe"):
        with pytest.raises(InvalidManifest):
            text(tmp_path / source)


def test_a_relative_path_begins_at_the_manifests_folder_and_else_at_the_current_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    game, current = tmp_path / "game", tmp_path / "current"
    for folder, rows in ((game, ROWS), (current, ROWS[:40])):
        folder.mkdir()
        json_lines(folder, rows)
    comma_separated(current)
    monkeypatch.chdir(current)
    context = ComponentContext(folder=game)

    def rows_of(source: str, context: ComponentContext) -> int:
        data = TextData(TextConfig(source=source), context)
        return sum(map(len, data.rows.values()))

    assert rows_of("rows.jsonl", context) == 60
    assert rows_of("rows.jsonl", ComponentContext()) == 40
    assert rows_of("rows.csv", context) == 60
    with pytest.raises(InvalidManifest, match=f"searched {game} and {current}"):
        rows_of("missing.csv", context)


def test_a_saved_dataset_is_found_beside_the_manifest(tmp_path: Path) -> None:
    saved_dataset(tmp_path)
    data = TextData(TextConfig(source="saved"), ComponentContext(folder=tmp_path))
    assert sum(map(len, data.rows.values())) == len(ROWS)


def test_a_torn_line_is_named(tmp_path: Path) -> None:
    path = tmp_path / "torn.jsonl"
    path.write_text('{"question": "a", "answer": "b"}\n{"question": ')
    with pytest.raises(BadData, match="line 2"):
        text(path)
