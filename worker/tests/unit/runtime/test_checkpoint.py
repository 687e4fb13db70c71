"""A checkpoint is complete or it is not used."""

from __future__ import annotations

import errno
import itertools
import json
import logging
import math
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from swarmgame.errors import BadData, NotWritable
from swarmgame.runtime import checkpoint
from swarmgame.runtime.checkpoint import CheckpointStore
from swarmgame.runtime.checkpoint_manifest import FORMAT_VERSION, sealed

plain = (
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False)
    | st.text(max_size=8)
    | st.binary(max_size=8)
)
trees = st.recursive(
    plain,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(st.text(max_size=4) | st.integers(-3, 3), inner, max_size=3)
    ),
    max_leaves=8,
)


@settings(max_examples=60, deadline=None)
@given(tree=trees)
def test_any_tree_of_plain_values_comes_back_as_it_was(tmp_path_factory: pytest.TempPathFactory, tree: Any) -> None:
    store = CheckpointStore(tmp_path_factory.mktemp("checkpoints"))
    store.save(3, {"tree": tree})
    loaded = store.load_latest()
    assert loaded is not None
    assert loaded.next_round == 3
    assert loaded.state == {"tree": tree}


@pytest.mark.parametrize("mapped", [False, True])
def test_tensors_come_back_bit_for_bit_with_tied_weights_and_non_finite_numbers(tmp_path: Path, mapped: bool) -> None:
    weight = torch.randn(3, 4).t()
    optimizer = torch.optim.Adam([torch.nn.Parameter(torch.ones(2))])
    optimizer.param_groups[0]["params"][0].grad = torch.tensor([1.0, 2.0])
    optimizer.step()
    state = {
        "model": {"embed": weight, "head": weight, 0: torch.tensor(5), "0": torch.tensor(6)},
        "optimizer": optimizer.state_dict(),
        "half": torch.tensor([math.nan, math.inf], dtype=torch.bfloat16),
        "best": -math.inf,
        "rng": torch.get_rng_state(),
    }
    store = CheckpointStore(tmp_path)
    store.save(1, state)
    loaded = store.load(1, mapped=True) if mapped else store.load_latest()
    assert loaded is not None
    assert torch.equal(loaded.state["model"]["embed"], weight)
    assert torch.equal(loaded.state["model"]["head"], weight)
    assert (int(loaded.state["model"][0]), int(loaded.state["model"]["0"])) == (5, 6)
    assert torch.equal(loaded.state["half"].view(torch.int16), state["half"].view(torch.int16))
    assert loaded.state["best"] == -math.inf
    assert torch.equal(loaded.state["rng"], state["rng"])
    fresh = torch.optim.Adam([torch.nn.Parameter(torch.ones(2))])
    fresh.load_state_dict(loaded.state["optimizer"])
    assert torch.equal(fresh.state_dict()["state"][0]["exp_avg"], optimizer.state_dict()["state"][0]["exp_avg"])


def test_only_the_newest_are_kept(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, keep=2)
    for number in range(5):
        store.save(number, {"n": number})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["round-00000003", "round-00000004"]


@pytest.mark.parametrize(
    "damage",
    [
        "truncate-tensors",
        "flip-a-bit",
        "no-manifest",
        "empty-manifest",
        "no-state",
        "manifest-is-a-list",
        "manifest-is-too-deep",
        "other-round",
        "renamed",
        "no-version",
    ],
)
def test_a_damaged_checkpoint_is_named_and_the_one_before_is_used(
    tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    store = CheckpointStore(tmp_path)
    store.save(1, {"w": torch.ones(8), "n": 1})
    newest = store.save(2, {"w": torch.zeros(8), "n": 2})
    tensors, manifest = newest / "tensors.safetensors", newest / "manifest.json"
    match damage:
        case "truncate-tensors":
            tensors.write_bytes(tensors.read_bytes()[:-5])
        case "flip-a-bit":
            data = bytearray(tensors.read_bytes())
            data[-1] ^= 1
            tensors.write_bytes(bytes(data))
        case "no-manifest":
            manifest.unlink()
        case "empty-manifest":
            manifest.write_text("")
        case "no-state":
            (newest / "state.json").unlink()
        case "no-version":
            manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"format": None}))
        case "manifest-is-a-list":
            manifest.write_text("[]")
        case "manifest-is-too-deep":
            manifest.write_text("[" * 100_000)
        case "other-round":
            manifest.write_text(manifest.read_text().replace('"nextRound": 2', '"nextRound": 6'))
        case "renamed":
            shutil.move(store.save(3, {"w": torch.zeros(8), "n": 3}), tmp_path / "moved")
            shutil.rmtree(newest)
            shutil.move(tmp_path / "moved", newest)
    with caplog.at_level(logging.ERROR):
        loaded = store.load_latest()
    assert loaded is not None
    assert loaded.state["n"] == 1
    assert str(newest) in caplog.text
    with pytest.raises(BadData, match="round-00000002"):
        store.load(2, mapped=True)


@pytest.mark.parametrize("version", [1, 99])
def test_a_checkpoint_of_another_version_is_refused_with_what_to_do(tmp_path: Path, version: int) -> None:
    store = CheckpointStore(tmp_path)
    store.save(1, {"n": 1})
    manifest = store.save(2, {"n": 2}) / "manifest.json"
    found = {name: value for name, value in json.loads(manifest.read_text()).items() if name != "sha256"}
    found["format"] = version
    manifest.write_text(json.dumps(found if version == 1 else sealed(found)))  # the first had no hash of their own
    expected = (
        rf"round-00000002 is of format version {version}; this release writes version {FORMAT_VERSION}: .*--fresh"
    )
    with pytest.raises(BadData, match=expected):
        store.load_latest()


def test_no_bit_of_a_manifest_can_change(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    store = CheckpointStore(tmp_path)
    path = store.save(60, {"n": 60}) / "manifest.json"
    data = path.read_bytes()
    caplog.set_level(logging.CRITICAL)
    for place, bit in itertools.product(range(len(data)), range(8)):
        flipped = bytearray(data)
        flipped[place] ^= 1 << bit
        path.write_bytes(flipped)
        found = store.load_latest()
        # The size of a file, white space and such may be read alike.
        assert found is None or (found.next_round, found.state) == (60, {"n": 60})
    path.write_bytes(data)
    assert store.load_latest() is not None


def test_a_crash_at_any_write_leaves_the_one_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The process may die at every fsync and rename of a save; the store then still loads a complete checkpoint."""
    store = CheckpointStore(tmp_path)
    store.save(1, {"n": 1})
    survived = 0
    for fatal in range(20):
        calls = 0
        real_fsync, real_rename = os.fsync, Path.rename

        def dying(real: Any, *arguments: Any, fatal: int = fatal) -> Any:
            nonlocal calls
            calls += 1
            if calls > fatal:
                raise KeyboardInterrupt
            return real(*arguments)

        with monkeypatch.context() as patch:
            patch.setattr(checkpoint.os, "fsync", lambda fd, real=real_fsync: dying(real, fd))
            patch.setattr(Path, "rename", lambda self, target, real=real_rename: dying(real, self, target))
            try:
                store.save(2, {"n": 2})
                survived += 1
            except KeyboardInterrupt:
                pass
        loaded = store.load_latest()
        assert loaded is not None
        assert loaded.state["n"] == loaded.next_round
    assert 0 < survived < 20


def test_a_store_without_checkpoints_has_none(tmp_path: Path) -> None:
    assert CheckpointStore(tmp_path / "absent").load_latest() is None


def test_what_cannot_be_stored_is_named(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="/model/layer"):
        CheckpointStore(tmp_path).save(1, {"model": {"layer": object()}})


@pytest.mark.parametrize(("name", "step"), [("manifest.json", 1), ("state.json", 5), ("tensors.safetensors", 31)])
def test_no_flipped_bit_makes_another_checkpoint(
    tmp_path: Path, name: str, step: int, caplog: pytest.LogCaptureFixture
) -> None:
    """Every bit of the manifest, and some of the rest. A flip that changes nothing of the content may be accepted."""
    caplog.set_level(logging.CRITICAL)
    store = CheckpointStore(tmp_path)
    path = store.save(60, {"w": torch.arange(8.0), "n": [1, 2.5, "text"]}) / name
    good, data = store.load_latest(), path.read_bytes()
    assert good is not None
    tried, refused = range(0, 8 * len(data), step), 0
    for bit in tried:
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << bit % 8
        path.write_bytes(flipped)
        found = store.load_latest()
        refused += found is None
        if found is not None:
            assert (found.next_round, found.state["n"]) == (60, good.state["n"])
            assert torch.equal(found.state["w"], good.state["w"])
    assert refused >= (0.95 if name == "manifest.json" else 1.0) * len(tried)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EDQUOT])
def test_a_disk_that_is_full_or_read_only_is_one_sentence_and_leaves_no_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    store = CheckpointStore(tmp_path)
    store.save(1, {"x": 1})

    def refuse(path: Path, data: bytes) -> None:
        path.write_bytes(data[:1])
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(checkpoint, "_write_flushed", refuse)
    with pytest.raises(NotWritable, match="round-00000002 cannot be written: "):
        store.save(2, {"x": 2})
    assert [path.name for path in tmp_path.iterdir()] == ["round-00000001"]
    latest = store.load_latest()
    assert latest is not None
    assert latest.next_round == 1
