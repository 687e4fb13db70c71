"""Model addresses: what may be said, and what is refused before anything starts."""

from __future__ import annotations

from pathlib import Path

import httpx
import pytest
from huggingface_hub import HfApi
from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

from swarmgame.errors import InvalidManifest
from swarmgame.models import uri as uri_module
from swarmgame.models.builtin import BuiltinOptions
from swarmgame.models.uri import ModelUri, Scheme, check, read_token


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("builtin://tiny", ModelUri(Scheme.BUILTIN, "tiny")),
        ("builtin://tiny?layers=3&hidden=96", ModelUri(Scheme.BUILTIN, "tiny", {"layers": "3", "hidden": "96"})),
        ("file:///models/my%20model", ModelUri(Scheme.FILE, "/models/my model")),
        ("hf://Qwen/Qwen2.5-0.5B-Instruct", ModelUri(Scheme.HUB, "Qwen/Qwen2.5-0.5B-Instruct")),
        ("hf://gpt2", ModelUri(Scheme.HUB, "gpt2")),
    ],
)
def test_an_address_is_parsed(address: str, expected: ModelUri) -> None:
    assert ModelUri.parse(address) == expected


@pytest.mark.parametrize(
    "address",
    [
        "",
        "gpt2",
        "s3://bucket/model",
        "file://relative/path",
        "file:///no/such/folder",
        "hf://",
        "hf://a/b/c",
        "hf://../etc/passwd",
        "hf://name/with space",
        "hf://org/name?layers=2",
        "builtin://huge",
        "builtin://tiny?layer=2",
        "builtin://tiny?layers=0",
        "builtin://tiny?layers=two",
        "builtin://tiny?layers=2&layers=3",
        "builtin://tiny?hidden=64&heads=5",
        "builtin://tiny?accuracy=1",
    ],
)
def test_an_impossible_address_is_an_invalid_manifest(address: str) -> None:
    with pytest.raises(InvalidManifest, match=r"spec\.model\.uri"):
        check(address)


def test_a_folder_is_looked_into_without_loading_it(tmp_path: Path) -> None:
    address = f"file://{tmp_path}"
    for name, missing in (
        ("config.json", "config.json"),
        ("model.safetensors", "weights"),
        ("tokenizer.json", "tokenizer"),
    ):
        with pytest.raises(InvalidManifest, match=missing):
            check(address)
        (tmp_path / name).write_text("{}")
    assert check(address) == ModelUri(Scheme.FILE, str(tmp_path))


def test_a_builtin_model_has_no_revision() -> None:
    with pytest.raises(InvalidManifest, match=r"spec\.model\.revision"):
        check("builtin://tiny", "main")


def test_an_option_that_is_wrong_is_named() -> None:
    with pytest.raises(InvalidManifest, match="hidden") as caught:
        BuiltinOptions.of(ModelUri.parse("builtin://tiny?hidden=7"))
    assert caught.value.problems[0].got == "7"


def test_offline_a_hub_model_must_be_in_the_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(HfApi, "model_info", lambda *_, **__: pytest.fail("the hub was asked"))
    with pytest.raises(InvalidManifest, match="not cached"):
        check("hf://nobody/nothing-of-the-kind")
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *_, **__: "/cache/config.json")
    assert check("hf://nobody/nothing-of-the-kind").scheme is Scheme.HUB


def _answer(status: int) -> httpx.Response:
    return httpx.Response(status, request=httpx.Request("GET", "https://hub.invalid/api"))


@pytest.mark.parametrize(
    ("raised", "message"),
    [
        (RepositoryNotFoundError("no", response=_answer(404)), "exists on the hub"),
        (GatedRepoError("no", response=_answer(403)), "gated"),
        (RevisionNotFoundError("no", response=_answer(404)), r"spec\.model\.revision"),
        (ConnectionError("no route"), "not reached"),
        (httpx.ConnectError("no route"), "not reached"),
    ],
    ids=["no such model", "gated", "no such revision", "unreachable", "unreachable by httpx"],
)
def test_the_hubs_answer_becomes_a_readable_error(
    monkeypatch: pytest.MonkeyPatch, raised: Exception, message: str
) -> None:
    def model_info(*_: object, **__: object) -> None:
        raise raised

    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr(HfApi, "model_info", model_info)
    with pytest.raises(InvalidManifest, match=message):
        check("hf://nobody/nothing-of-the-kind", revision="v1")


def test_a_hub_that_does_not_answer_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    from threading import Event

    over = Event()
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr(uri_module, "HUB_SECONDS", -0.9)
    monkeypatch.setattr(HfApi, "model_info", lambda *_, **__: over.wait(60))
    with pytest.raises(InvalidManifest, match="not reached"):
        check("hf://nobody/nothing-of-the-kind")
    over.set()


def test_a_token_is_read_from_its_file_and_never_shown(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("hub_secret\n")
    assert read_token(tmp_path / "token") == "hub_secret"
    assert read_token(None) is None
    with pytest.raises(InvalidManifest, match=r"spec\.model\.secretRef"):
        read_token(tmp_path / "missing")
