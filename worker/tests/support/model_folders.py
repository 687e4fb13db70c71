"""Folders with tiny random models of any architecture, as `save_pretrained` writes them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, PreTrainedConfig, Qwen2Config

from swarmgame.models.tokenizer import character_tokenizer

SHAPE = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
}
GPT = {"ffn_dim": 48, "word_embed_proj_dim": 32}


def folder(path: Path, config: type[PreTrainedConfig] = Qwen2Config, *, tokenizer: Any = None, **more: Any) -> str:
    """Save a random model, and return its address."""
    tokenizer = tokenizer or character_tokenizer()
    ids = {name: getattr(tokenizer, name) for name in ("pad_token_id", "bos_token_id", "eos_token_id")}
    torch.manual_seed(7)
    model = AutoModelForCausalLM.from_config(config(**{"vocab_size": len(tokenizer), **ids, **SHAPE, **more}))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, 0.25)
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return f"file://{path}"
