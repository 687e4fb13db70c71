"""A saved policy goes on only over the base model with which it began."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from language_rounds import play, trainer, weights
from transformers import LlamaConfig, LlamaForCausalLM

from swarmgame.models.tokenizer import character_tokenizer


def base(folder: Path, seed: int) -> str:
    torch.manual_seed(seed)
    shape = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    tokenizer = character_tokenizer()
    LlamaForCausalLM(
        LlamaConfig(vocab_size=len(tokenizer), eos_token_id=tokenizer.eos_token_id, **shape)
    ).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return f"file://{folder}"


@pytest.mark.parametrize("options", [{"lora": {"rank": 2}}, {"beta": 0.1}, {}])
def test_a_resume_over_other_weights_at_the_same_address_is_refused(tmp_path: Path, options: Any) -> None:
    address = base(tmp_path / "model", 1)
    began = trainer(tmp_path, model=address, **options)
    play(began, 0)
    state = began.state_dict()
    same = trainer(tmp_path, model=address, **options)
    same.load_state_dict(state)
    assert all(torch.equal(tensor, weights(began)[name]) for name, tensor in weights(same).items())
    base(tmp_path / "model", 2)
    other = trainer(tmp_path, model=address, **options)
    before = weights(other)
    with pytest.raises(ValueError, match="began with another base model") as caught:
        other.load_state_dict(state)
    assert began.base_model[:8] in str(caught.value)
    assert other.base_model[:8] in str(caught.value)
    assert all(torch.equal(tensor, before[name]) for name, tensor in weights(other).items())


def test_a_checkpoint_that_does_not_name_its_base_is_taken(tmp_path: Path) -> None:
    learner = trainer(tmp_path)
    state = {name: value for name, value in learner.state_dict().items() if name not in ("base", "commit")}
    learner.load_state_dict(state)
