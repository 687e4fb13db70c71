"""Tiny random language models of the architectures that are written out, on a CUDA device where there is one."""

from __future__ import annotations

import torch
from transformers import (
    GraniteConfig,
    GraniteForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    Olmo2Config,
    Olmo2ForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    SmolLM3Config,
    SmolLM3ForCausalLM,
)

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
PAD, EOS = 0, 1
PROMPTS = [[5, 6, 7, 8, 9, 10, 11], [3], [12, 4, 9], [5, 6, 7]]
ARCHITECTURES = {
    "qwen2": (Qwen2Config, Qwen2ForCausalLM),
    "llama": (LlamaConfig, LlamaForCausalLM),
    "qwen3": (Qwen3Config, Qwen3ForCausalLM),
}
VARIANTS = {
    "granite": (GraniteConfig, GraniteForCausalLM),
    "olmo2": (Olmo2Config, Olmo2ForCausalLM),
    "phi3": (Phi3Config, Phi3ForCausalLM),
    "smollm3": (SmolLM3Config, SmolLM3ForCausalLM),
}
"""Those that differ from Llama in more than the norms of their heads."""
OPTIONS = {
    "granite": {
        "embedding_multiplier": 3.0,
        "attention_multiplier": 0.2,
        "residual_multiplier": 0.6,
        "logits_scaling": 1.5,
    },
    "smollm3": {"no_rope_layers": [1, 0]},
}


def tiny(architecture="qwen2", vocabulary=19, spread=0.4, **more):
    torch.manual_seed(7)
    config, model = (ARCHITECTURES | VARIANTS)[architecture]
    shape = {
        "vocab_size": vocabulary,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "initializer_range": spread,
        "bos_token_id": None,
        "eos_token_id": EOS,
        "pad_token_id": PAD,
    }
    return model(config(**shape | OPTIONS.get(architecture, {}) | more)).eval().to(DEVICE)


def completions(groups):
    return [completion for group in groups for completion in group]
