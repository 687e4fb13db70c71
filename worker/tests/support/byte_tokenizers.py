"""Byte-level tokenizers with chat templates, and folders with a tiny random model around them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

START, END, EOS = "<|im_start|>", "<|im_end|>", "<|endoftext|>"
CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}"
    "{% if enable_thinking is defined and not enable_thinking %}{{ '<think></think>' }}{% endif %}{% endif %}"
)


def byte_tokenizer(template: str | None = CHATML) -> Any:
    """Return a tokenizer with an id a byte, no merges, and the special tokens of ChatML; EOS is `<|endoftext|>`."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    made = Tokenizer(models.BPE(vocab={token: index for index, token in enumerate(alphabet)}, merges=[]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=made, eos_token=EOS, pad_token=EOS, additional_special_tokens=[START, END]
    )
    if template:
        tokenizer.chat_template = template
    return tokenizer


def model_folder(path: Path, tokenizer: Any, *, more_ids: int = 0, eos: list[int] | None = None) -> str:
    """Save a random Qwen2 model with the tokenizer, and return its address.

    Args:
        more_ids: ids of the model that the tokenizer does not have.
        eos: of the generation configuration; None: the tokenizer's.
    """
    torch.manual_seed(7)
    config = Qwen2Config(
        vocab_size=len(tokenizer) + more_ids,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=256,
        initializer_range=0.2,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=None,
    )
    model = Qwen2ForCausalLM(config)
    model.generation_config.eos_token_id = eos or tokenizer.eos_token_id
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return f"file://{path}"
