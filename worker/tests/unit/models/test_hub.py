"""A hub that cannot be reached: one request, and then the cache alone."""

from __future__ import annotations

import errno
from collections.abc import Callable
from pathlib import Path

import datasets
import pytest
from huggingface_hub import constants

from swarmgame.data.dataset import FiniteConfig, load_from_hub
from swarmgame.data.text import TextConfig, TextData
from swarmgame.errors import BadData, InvalidManifest, NotWritable, Temporary
from swarmgame.game.components import ComponentContext
from swarmgame.models import hub
from swarmgame.models.hub import is_reachable, offline_unless_reachable


@pytest.fixture
def requests(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The addresses that are requested, of a hub that refuses every connection."""
    seen: list[str] = []

    class Session:
        def head(self, address: str, timeout: float) -> None:
            seen.append(address)
            raise hub.connection_errors()[0]("refused")

    monkeypatch.setattr("huggingface_hub.get_session", Session)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    return seen


def offline() -> tuple[bool, bool]:
    return constants.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE


def test_without_an_answer_the_block_uses_the_cache_and_the_client_is_as_before(requests: list[str]) -> None:
    def fail() -> None:
        with offline_unless_reachable():
            assert offline() == (True, True)
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert offline() == (False, False)
    assert requests == [constants.ENDPOINT]


def test_a_hub_that_answers_with_anything_is_used(requests: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    class Session:
        def head(self, address: str, timeout: float) -> int:
            return 503

    monkeypatch.setattr("huggingface_hub.get_session", Session)
    assert is_reachable()
    with offline_unless_reachable():
        assert offline() == (False, False)


def test_no_request_is_made_where_the_environment_forbids_it(
    requests: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with offline_unless_reachable():
        assert offline()[0]
    assert requests == []


def test_a_dataset_that_is_not_cached_is_one_sentence_after_one_request(
    requests: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def load_dataset(name: str, *arguments: object, **options: object) -> None:
        assert offline() == (True, True)
        raise ConnectionError(f"Couldn't reach '{name}' on the Hub (OfflineModeIsEnabled)")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(Temporary, match=r"cannot be reached for hf://org/name, and .*/datasets has no copy of it"):
        load_from_hub(FiniteConfig(source="hf://org/name"), ComponentContext())
    assert len(requests) == 1


def script() -> Exception:
    return RuntimeError("Dataset scripts are no longer supported, but found name.py")


def columns() -> Exception:
    error = datasets.exceptions.DatasetGenerationCastError("An error occurred while generating the dataset")
    error.__cause__ = ValueError("1 new columns ({'source'})")
    return error


def disk() -> Exception:
    error = datasets.exceptions.DatasetGenerationError("An error occurred while generating the dataset")
    error.__cause__ = OSError(errno.ENOSPC, "No space left on device", "/cache/x")
    return error


def network() -> Exception:
    error = datasets.exceptions.DatasetGenerationError("An error occurred while generating the dataset")
    error.__cause__ = hub.connection_errors()[0]("reset by peer")
    return error


@pytest.mark.parametrize(
    ("make", "kind", "message"),
    [
        (script, InvalidManifest, r"RuntimeError: Dataset scripts .*take another subset, or .*org/name@refs/convert"),
        (columns, InvalidManifest, r"DatasetGenerationCastError: .*; ValueError: 1 new columns .*another subset"),
        (lambda: ImportError("install Pillow"), InvalidManifest, "ImportError: install Pillow"),
        (disk, NotWritable, "/cache/x cannot be written: no space is left"),
        (network, Temporary, "the hub cannot be reached for hf://org/name@v1: .*reset by peer"),
    ],
)
def test_a_dataset_that_cannot_be_built_is_one_sentence(
    make: Callable[[], Exception],
    kind: type[Exception],
    message: str,
    requests: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def load_dataset(*_: object, **__: object) -> None:
        raise make()

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(kind, match=message):
        load_from_hub(FiniteConfig(source="hf://org/name@v1"), ComponentContext())


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("dataset_info.json", b"{"),
        ("dataset_info.json", b"[]"),
        ("state.json", b"{}"),
        ("state.json", None),
        ("data-00000-of-00001.arrow", b""),
        ("data-00000-of-00001.arrow", None),
    ],
)
def test_a_damaged_folder_of_a_dataset_is_named(name: str, content: bytes | None, tmp_path: Path) -> None:
    datasets.Dataset.from_dict({"question": ["a"], "answer": ["b"]}).save_to_disk(tmp_path / "saved")
    if content is None:
        (tmp_path / "saved" / name).unlink()
    else:
        (tmp_path / "saved" / name).write_bytes(content)
    with pytest.raises(BadData, match=r"saved cannot be read as a dataset that was saved .*: save it again"):
        load_from_hub(FiniteConfig(source=str(tmp_path / "saved")), ComponentContext())


def test_a_row_that_cannot_be_decoded_is_named(tmp_path: Path) -> None:
    features = datasets.Features({"question": datasets.Value("string"), "picture": datasets.Image()})
    rows = {"question": ["a", "b"], "picture": [None, {"bytes": b"no picture", "path": None}]}
    datasets.Dataset.from_dict(rows, features=features).save_to_disk(tmp_path / "saved")
    config = TextConfig(source=str(tmp_path / "saved"), answer="")
    with pytest.raises(BadData, match=r"saved, row 1 .from 0. cannot be read: UnidentifiedImageError"):
        TextData(config, ComponentContext())
