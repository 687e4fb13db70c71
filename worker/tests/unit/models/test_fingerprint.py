"""The fingerprint of a model: equal for equal files, wherever they are; another one for any other policy."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from swarmgame.errors import InvalidManifest
from swarmgame.game.components import ComponentContext
from swarmgame.models import fingerprint as module
from swarmgame.models.fingerprint import folder_fingerprint, model_fingerprint, other_base
from swarmgame.models.loading import Source
from swarmgame.models.warmstart import source_of


def model(folder: Path, weights: bytes = b"weights", **config: object) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", "hidden_size": 8} | config))
    (folder / "tokenizer.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(weights)
    return folder


def test_equal_files_have_one_fingerprint_in_any_folder(tmp_path: Path) -> None:
    one = folder_fingerprint(model(tmp_path / "a", transformers_version="5.1"), tmp_path)
    other = model(tmp_path / "b", transformers_version="5.2", _name_or_path="/home/me")
    (other / "README.md").write_text("a card")
    (other / "training_args.bin").write_bytes(b"x")
    assert folder_fingerprint(other, tmp_path) == one
    assert len(one) == 16


@pytest.mark.parametrize(
    "change",
    [
        lambda folder: (folder / "model.safetensors").write_bytes(b"weightz"),
        lambda folder: (folder / "model-2.safetensors").write_bytes(b"more"),
        lambda folder: (folder / "tokenizer.json").write_text('{"a": 1}'),
        lambda folder: (folder / "chat_template.jinja").write_text("{{ messages }}"),
        lambda folder: (folder / "config.json").write_text('{"hidden_size": 16}'),
    ],
)
def test_other_weights_configuration_tokenizer_or_template_make_another_one(
    tmp_path: Path, change: Callable[[Path], object]
) -> None:
    folder = model(tmp_path / "a")
    before = folder_fingerprint(folder, tmp_path)
    change(folder)
    assert folder_fingerprint(folder, tmp_path) != before


def test_the_names_of_files_in_the_hubs_cache_stand_for_their_content(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = model(tmp_path / "plain")
    cached = model(tmp_path / "snapshots" / "c0ffee")
    blob = tmp_path / "blobs" / hashlib.sha256(b"weights").hexdigest()
    blob.parent.mkdir()
    blob.write_bytes(b"not read")
    (cached / "model.safetensors").unlink()
    (cached / "model.safetensors").symlink_to(blob)
    assert folder_fingerprint(cached, tmp_path) == folder_fingerprint(plain, tmp_path)


def test_the_hash_of_a_large_file_is_kept_until_the_file_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "LARGE", 4)
    folder, cache = model(tmp_path / "a"), tmp_path / "cache"
    before = folder_fingerprint(folder, cache)
    monkeypatch.setattr(module, "_sha256", lambda path: pytest.fail(f"{path} was read again"))
    assert folder_fingerprint(folder, cache) == before
    monkeypatch.undo()
    monkeypatch.setattr(module, "LARGE", 4)
    (folder / "model.safetensors").write_bytes(b"other weights")
    assert folder_fingerprint(folder, cache) != before


def test_a_builtin_model_is_known_by_its_recipe_before_it_is_made(tmp_path: Path) -> None:
    context = ComponentContext(model_uri="builtin://tiny?layers=1", cache=tmp_path)
    one = model_fingerprint(source_of(context), tmp_path)
    elsewhere = replace(context, cache=tmp_path / "elsewhere")
    assert model_fingerprint(source_of(elsewhere), tmp_path) == one
    assert model_fingerprint(source_of(replace(context, model_uri="builtin://tiny?layers=2")), tmp_path) != one
    assert not any(tmp_path.iterdir())


def test_a_folder_that_is_gone_is_an_error_of_the_manifest(tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    with pytest.raises(InvalidManifest, match="files can be read"):
        model_fingerprint(Source(f"file://{gone}", str(gone)), tmp_path)


def test_another_base_is_named_with_both_fingerprints_and_what_to_do() -> None:
    saved, found = ("hf://me/model", "a" * 16), ("hf://me/model", "b" * 16)
    text = other_base(saved, found, "c0ffee")
    assert ("a" * 8 in text, "a" * 9 in text, "b" * 8 in text) == (True, False, True)
    assert "spec.model.revision to c0ffee" in text
    assert "put the former files back" in other_base(saved, found)
    builtin = [("builtin://tiny", digest) for _, digest in (saved, found)]
    assert "with which it was warm-started" in other_base(*builtin)
    assert "name hf://me/model in spec.model.uri" in other_base(saved, ("file:///m", "b" * 16), "c0ffee")
