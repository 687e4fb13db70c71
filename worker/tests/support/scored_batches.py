"""Small models of three architectures, batches of rollouts to score, and the numbers that a way of scoring gives for
them.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any

import torch
from tiny_models import OPTIONS, VARIANTS
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM, Qwen3Config, Qwen3ForCausalLM

from swarmgame.trainer.grpo.logprobs import EarlyEos, completion_logprobs
from swarmgame.trainer.grpo.packed_forward import PackedForward

ARCHITECTURES: dict[str, tuple[Any, Any]] = {
    "llama": (LlamaConfig, LlamaForCausalLM),
    "qwen2": (Qwen2Config, Qwen2ForCausalLM),
    "qwen3": (Qwen3Config, Qwen3ForCausalLM),
}
TEMPERATURE = 0.7
VOCABULARY = 64

Batch = tuple[list[list[int]], list[list[int]]]
Score = Callable[[Sequence[Sequence[int]], Sequence[Sequence[int]]], tuple[Tensor, Tensor | None, Tensor]]


def small_model(architecture: str = "qwen2", **changes: Any) -> Any:
    """Return a model in training mode, with weights large enough for its log-probabilities to differ."""
    torch.manual_seed(0)
    config, model = (ARCHITECTURES | VARIANTS)[architecture]
    shape = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
    }
    options = {
        "vocab_size": VOCABULARY,
        "tie_word_embeddings": architecture != "llama",
        "initializer_range": 0.3,
        "head_dim": 8,
        "pad_token_id": None,
    }
    return model(config(**{**options, **shape, **OPTIONS.get(architecture, {}), **changes})).train()


def batch_of(lengths: Sequence[int], completions: int = 3, longest: int = 6, seed: int = 3) -> Batch:
    """Return the prompts and completions of rollouts in random order, for prompts of these lengths; some completions
    have one token.
    """
    draw = random.Random(seed)
    prompts = [[draw.randrange(VOCABULARY) for _ in range(length)] for length in lengths]
    rows = [prompt for prompt in prompts for _ in range(completions)]
    draw.shuffle(rows)
    return rows, [[draw.randrange(VOCABULARY) for _ in range(draw.randint(1, longest))] for _ in rows]


def plain(model: Any, early_eos: EarlyEos | None = None) -> Score:
    return lambda prompts, completions: completion_logprobs(
        model, prompts, completions, TEMPERATURE, with_entropy=True, early_eos=early_eos
    )


def packed(model: Any, *, compile: bool = False, early_eos: EarlyEos | None = None) -> Score:
    forward = PackedForward(model, compile=compile)
    return lambda prompts, completions: forward.score(prompts, completions, TEMPERATURE, early_eos)


def numbers(model: Any, score: Score, batch: Batch) -> dict[str, Tensor]:
    """Return log-probabilities, entropies, mask, and the gradients by parameter of a sum that weighs each token
    differently, on the CPU.
    """
    model.zero_grad()
    logprobs, entropies, mask = score(*batch)
    assert entropies is not None
    assert not entropies.requires_grad
    (logprobs.exp() * torch.arange(1, logprobs.shape[1] + 1, device=logprobs.device)).sum().backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}
    found = {"logprobs": logprobs.detach(), "entropies": entropies, "mask": mask, **gradients}
    return {name: tensor.float().cpu().clone() for name, tensor in found.items()}


def assert_equal(ours: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """Compare to 3e-5 of each tensor's largest number."""
    assert ours.keys() == expected.keys()
    for name, tensor in expected.items():
        bound = 3e-5 * max(1.0, float(tensor.abs().max()))
        torch.testing.assert_close(
            ours[name], tensor, atol=bound, rtol=0.0, msg=lambda text, name=name: f"{name}: {text}"
        )
