"""The `images` data: arrays in [0, 1], the same on every peer."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy
import pytest
from PIL import Image

from swarmgame import ComponentContext, GameState, Round
from swarmgame.data.images import DIGITS, ImageConfig, ImageData, evenly
from swarmgame.errors import BadData, InvalidManifest

ROUND = Round(number=0, seed=1, peer_seed=2, stages=1, peer="a", members=("a", "b"))


def images(source: Path | str, **rest: Any) -> ImageData:
    return ImageData(ImageConfig.model_validate({"source": str(source), **rest}), ComponentContext())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for label, name in enumerate(("cat", "dog")):
        (tmp_path / name).mkdir()
        for number in range(12):
            Image.new("RGB", (6, 4), (255 * label, 10 * number, 0)).save(tmp_path / name / f"{number}.png")
    return tmp_path


def test_the_digits_need_no_download() -> None:
    data = images(DIGITS, questionsPerRound=32)
    questions = data.round_data(ROUND)
    assert data.shape == (1, 8, 8)
    assert data.classes == [str(digit) for digit in range(10)]
    assert len({question.id for question in questions}) == 32
    assert all(
        question.payload.dtype == numpy.float32 and question.payload.min() >= 0 and question.payload.max() <= 1
        for question in questions
    )
    assert {question.answer for question in questions} <= {str(digit) for digit in range(10)}
    assert [data.resolve(question.reference) for question in questions] == list(questions)
    prompts = data.stage_inputs(GameState.begin(ROUND, questions), 0)
    assert all(
        numpy.array_equal(prompt.payload, question.payload) for prompt, question in zip(prompts, questions, strict=True)
    )


def test_held_out_digits_are_in_no_round() -> None:
    data = images(DIGITS)
    held_out = data.evaluation_data(10_000)
    assert 100 < len(held_out) < 300
    assert {data.resolve(question.reference) for question in held_out} == {None}


def test_a_folder_of_classes_is_read_in_one_order(folder: Path) -> None:
    data = images(folder)
    assert data.classes == ["cat", "dog"]
    assert data.shape == (3, 4, 6)
    for question in data.round_data(ROUND):
        assert question.answer == str(int(question.payload[0, 0, 0]))
        assert question.metadata["class"] == data.classes[int(question.answer)]
    assert images(folder).round_data(replace(ROUND, peer="b")) == data.round_data(ROUND)


def test_size_and_channels_are_as_configured(folder: Path) -> None:
    assert images(folder, size=5, channels=1).shape == (1, 5, 5)
    assert images(DIGITS, size=16, channels=3).shape == (3, 16, 16)


def test_a_saved_dataset_is_read(folder: Path) -> None:
    datasets = pytest.importorskip("datasets")
    pictures = [Image.new("L", (4, 4), 20 * number) for number in range(12)]
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["no", "yes"])})
    saved = datasets.Dataset.from_dict(
        {"image": pictures, "label": [number % 2 for number in range(12)]}, features=features
    )
    saved.save_to_disk(folder / "saved")
    data = images(folder / "saved", questionsPerRound=4)
    assert data.classes == ["no", "yes"]
    assert data.shape == (1, 4, 4)
    with pytest.raises(InvalidManifest, match=r"spec\.game\.data\.with\.label"):
        images(folder / "saved", label="kind")


def test_pictures_of_several_sizes_need_a_size(folder: Path) -> None:
    Image.new("RGB", (9, 9)).save(folder / "cat" / "large.png")
    with pytest.raises(InvalidManifest, match=r"spec\.game\.data\.with\.size"):
        images(folder)
    assert images(folder, size=6).shape == (3, 6, 6)


def test_a_broken_picture_is_named(folder: Path) -> None:
    (folder / "dog" / "broken.png").write_bytes(b"no picture")
    with pytest.raises(BadData, match=r"broken\.png"):
        images(folder)


@pytest.mark.parametrize("content", [b"\x89PNG\r\n\x1a\n" + b"\0" * 40, b"GIF89a\x01", b"BM" + b"\xff" * 60])
def test_a_torn_picture_is_named(folder: Path, content: bytes) -> None:
    (folder / "dog" / "torn.png").write_bytes(content)
    with pytest.raises(BadData, match=r"torn\.png is no picture that can be read"):
        images(folder)


def test_a_cut_folder_has_as_many_pictures_of_each_class(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    data = images(folder, maxRows=14, heldOut=0, questionsPerRound=14)
    answers = [question.answer for question in data.round_data(ROUND)]
    assert Counter(answers) == {"0": 7, "1": 7}
    assert "only 14 of the 24 pictures of" in caplog.text
    assert "of each class at least 7 and at most 7" in caplog.text
    caplog.clear()
    assert images(folder, maxRows=24).digest == images(folder).digest
    assert "maxRows" not in caplog.text


def test_cut_digits_are_the_first_ones_since_their_classes_are_mixed(caplog: pytest.LogCaptureFixture) -> None:
    data = images(DIGITS, maxRows=100, heldOut=0, questionsPerRound=100)
    assert len({question.answer for question in data.round_data(ROUND)}) == 10
    assert "only 100 of the 1797 pictures of sklearn://digits are read" in caplog.text


@pytest.mark.parametrize(
    ("counts", "most", "taken"),
    [
        ([10, 10], 7, [4, 3]),
        ([1, 10, 10], 9, [1, 4, 4]),
        ([3, 3], 10, [3, 3]),
        ([5] * 10, 3, [1, 1, 1] + [0] * 7),
        ([2, 100, 7], 60, [2, 51, 7]),
    ],
)
def test_a_cut_is_as_equal_as_the_classes_allow(counts: list[int], most: int, taken: list[int]) -> None:
    assert evenly(counts, most) == taken


def saved(folder: Path, pictures: list[Any], labels: list[Any], **features: Any) -> Path:
    """Save a dataset whose picture is a file in a column of bytes and path, as Parquet files have it."""
    datasets = pytest.importorskip("datasets")
    kinds = {"image": {"bytes": datasets.Value("binary"), "path": datasets.Value("string")}, **features}
    rows = datasets.Dataset.from_dict({"image": pictures, "label": labels}, features=datasets.Features(kinds))
    rows.save_to_disk(folder / "saved")
    return folder / "saved"


def picture(shade: int) -> dict[str, Any]:
    file = BytesIO()
    Image.new("L", (4, 4), shade).save(file, "PNG")
    return {"bytes": file.getvalue(), "path": None}


def test_pictures_of_a_column_without_the_feature_of_images_are_decoded(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    # Class by class, as a split that was made from folders is.
    where = saved(tmp_path, list(map(picture, range(0, 240, 10))), [0] * 12 + [1] * 12, label=datasets.Value("int64"))
    assert images(where).shape == (1, 4, 4)
    cut = images(where, maxRows=8, heldOut=0)
    assert sorted((q.answer, round(q.payload.max() * 255)) for q in cut.round_data(ROUND)) == [
        *(("0", 10 * number) for number in range(4)),
        *(("1", 120 + 10 * number) for number in range(4)),
    ]


@pytest.mark.parametrize(
    ("pictures", "labels", "kind", "expected"),
    [
        ([{"bytes": None, "path": None}], [0], "int64", "row 3 .from 0., column image: an object with the keys"),
        ([None], [0], "int64", "row 3 .from 0., column image: "),
        ([{"bytes": b"no picture", "path": None}], [0], "int64", "row 3 .from 0., column image: no picture that can"),
        ([picture(9)], [-1], "names", "row 3 .from 0., column label: -1; expected the number of one of the 2 classes"),
        ([picture(9)], [None], "names", "row 3 .from 0., column label: null; expected the number"),
        ([picture(9)], [None], "int64", "row 3 .from 0., column label: null; expected text or a number"),
    ],
)
def test_a_cell_that_cannot_be_used_is_named(
    tmp_path: Path, pictures: list[Any], labels: list[Any], kind: str, expected: str
) -> None:
    datasets = pytest.importorskip("datasets")
    label = datasets.ClassLabel(names=["no", "yes"]) if kind == "names" else datasets.Value(kind)
    where = saved(tmp_path, [picture(1), picture(2), picture(3), *pictures], [0, 1, 0, *labels], label=label)
    with pytest.raises(BadData, match=expected):
        images(where)


def test_a_null_picture_of_a_dataset_is_named(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("string")})
    rows = datasets.Dataset.from_dict({"image": [Image.new("L", (4, 4)), None], "label": ["a", "b"]}, features=features)
    rows.save_to_disk(tmp_path / "saved")
    with pytest.raises(BadData, match=r"row 1 .from 0., column image: null; expected a picture"):
        images(tmp_path / "saved")
