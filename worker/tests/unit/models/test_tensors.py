"""A model whose files do not hold exactly its tensors is refused by name, and never completed at random."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM

from swarmgame.errors import ExitCode, InvalidManifest, exit_code_of
from swarmgame.models.loading import Source, load_model
from swarmgame.models.tensors import check_tensors, in_order
from swarmgame.models.tokenizer import character_tokenizer


def saved(folder: Path, **options: Any) -> Path:
    shape = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    torch.manual_seed(3)
    LlamaForCausalLM(LlamaConfig(vocab_size=100, **shape | options)).save_pretrained(folder)
    character_tokenizer().save_pretrained(folder)
    return folder


def change(folder: Path, edit: Callable[[dict[str, torch.Tensor]], object]) -> None:
    file = folder / "model.safetensors"
    tensors = load_file(file)
    edit(tensors)
    save_file(tensors, file, metadata={"format": "pt"})


def change_config(folder: Path, **values: Any) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def load(folder: Path) -> Any:
    return load_model(Source(f"file://{folder}", str(folder)), dtype=torch.float32, device="cpu")


def refusal(folder: Path) -> str:
    with pytest.raises(InvalidManifest) as caught:
        load(folder)
    assert exit_code_of(caught.value) is ExitCode.BAD_CONFIG
    return str(caught.value)


def test_missing_tensors_are_refused_with_the_first_names_and_their_number(tmp_path: Path) -> None:
    folder = saved(tmp_path)
    change(folder, lambda tensors: [tensors.pop(name) for name in list(tensors) if "layers.1." in name])
    text = refusal(folder)
    assert "9 tensors are missing (model.layers.1.input_layernorm.weight" in text
    assert "and 6 more" in text
    assert "Fetch or copy the complete model again" in text


def test_a_head_may_be_missing_only_where_it_is_tied(tmp_path: Path) -> None:
    assert load(saved(tmp_path / "tied", tie_word_embeddings=True)) is not None
    folder = saved(tmp_path / "untied", tie_word_embeddings=False)
    change(folder, lambda tensors: tensors.pop("lm_head.weight"))
    assert "1 tensor is missing (lm_head.weight)" in refusal(folder)


def test_tensors_of_another_shape_are_named_with_both_shapes(tmp_path: Path) -> None:
    folder = saved(tmp_path)
    change_config(folder, intermediate_size=24)
    text = refusal(folder)
    assert "6 tensors are of another shape" in text
    assert "model.layers.0.mlp.down_proj.weight: 16 × 16, expected 16 × 24" in text
    assert "missing" not in text


def test_tensors_of_layers_that_the_configuration_leaves_out_are_refused(tmp_path: Path) -> None:
    folder = saved(tmp_path)
    change_config(folder, num_hidden_layers=1)
    assert "9 tensors are not part of this model (model.layers.1." in refusal(folder)


def test_a_bias_that_the_configuration_does_not_know_is_refused(tmp_path: Path) -> None:
    folder = saved(tmp_path)
    change(folder, lambda tensors: tensors.update({"model.layers.0.self_attn.q_proj.bias": torch.ones(16)}))
    assert "1 tensor is not part of this model (model.layers.0.self_attn.q_proj.bias)" in refusal(folder)


def test_other_parts_of_a_checkpoint_are_left_out_and_named_in_the_log(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = saved(tmp_path)
    change(folder, lambda tensors: tensors.update({"vision_tower.layers.0.weight": torch.ones(2)}))
    with caplog.at_level(logging.WARNING, "swarmgame.models.tensors"):
        load(folder)
    assert "vision_tower.layers.0.weight" in caplog.text


def test_a_missing_buffer_is_computed_and_named_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    class WithBuffer(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("mask", torch.ones(2))

    info = {"missing_keys": {"mask"}, "mismatched_keys": set(), "unexpected_keys": set()}
    with caplog.at_level(logging.WARNING, "swarmgame.models.tensors"):
        check_tensors(WithBuffer(), info, "file:///m")  # type: ignore[arg-type]
    assert "1 tensor is missing (mask); computed instead" in caplog.text


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_files_that_cannot_be_read_are_errors_of_the_manifest(tmp_path: Path, name: str) -> None:
    folder = saved(tmp_path)
    content = (folder / name).read_bytes()
    (folder / name).write_bytes(content[: len(content) // 2])
    assert str(folder) in refusal(folder)


def test_names_are_ordered_by_their_numbers() -> None:
    assert in_order({"l.10.a", "l.2.a", "a", "l.2.b"}) == ["a", "l.2.a", "l.2.b", "l.10.a"]
