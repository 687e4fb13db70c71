"""The `images` data: arrays in [0, 1], the same on every peer."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy
import pytest
from PIL import Image

from swarmgame import ComponentContext, GameState, Round
from swarmgame.data.images import DIGITS, ImageConfig, ImageData
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
