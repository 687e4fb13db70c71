"""Log-probabilities of given completions under a model that learns: the forward pass of training.

Prompt and completion of a row stand side by side and are padded on the right, so that plain causal attention needs no
mask; where many rows share a prompt it is read once instead (`shared_prompts`). The language model's head sees only
the positions that predict a completion token, EOS among them. Invariants: token ids go in and nothing is ever
re-tokenised; a fresh rollout gets the log-probabilities that its sampler reported (to 1e-4 in fp32); no fp32 copy of
all logits exists.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from swarmgame.trainer.grpo.shared_prompts import is_worthwhile, scored_logits, shared_logits

CHUNK_ELEMENTS = 1 << 25
"""Logits that are converted to fp32 at once: 128 MiB."""


def completion_logprobs(
    model: Any,
    prompt_ids: Sequence[Sequence[int]],
    completion_ids: Sequence[Sequence[int]],
    temperature: float,
    *,
    with_entropy: bool,
    pad_token_id: int = 0,
) -> tuple[Tensor, Tensor | None, Tensor]:
    """Scores a micro-batch of rollouts.

    Args:
        model: a causal language model of transformers, or one wrapped by peft; gradients flow when they are enabled.
        prompt_ids, completion_ids: one a row, each non-empty, lengths may differ; EOS belongs to the completion.
        temperature: the one sampled at.
        with_entropy: also return the entropy at each position, without gradient.
        pad_token_id: any valid id; what stands there influences nothing.

    Returns:
        Log-probabilities [B, T] in fp32 at least, with T the longest completion, 0 on padding; entropies [B, T] in
        nats, or None; the mask [B, T], bool.

    Raises:
        ValueError: a prompt or completion is empty, their numbers differ, or the temperature is not positive.
    """
    if len(prompt_ids) != len(completion_ids) or not prompt_ids:
        raise ValueError(
            f"{len(prompt_ids)} prompts but {len(completion_ids)} completions; expected as many of each, at least one"
        )
    if any(not len(ids) for ids in (*prompt_ids, *completion_ids)):
        raise ValueError("a prompt or completion is empty; expected at least one token each")
    if not temperature > 0:
        raise ValueError(f"temperature is {temperature}; expected a positive number")
    device = model.device
    starts = torch.tensor([len(prompt) - 1 for prompt in prompt_ids]).unsqueeze(1)
    lengths = torch.tensor([len(completion) for completion in completion_ids]).unsqueeze(1)
    places = torch.arange(int(lengths.max())).unsqueeze(0)
    mask = (places < lengths).to(device)
    row_N, place_N = mask.nonzero(as_tuple=True)
    target_N = torch.tensor([token for completion in completion_ids for token in completion]).to(device)

    if is_worthwhile(model, prompt_ids, completion_ids):
        logits_NV = shared_logits(model, prompt_ids, completion_ids, row_N, place_N, pad_token_id)
    else:
        rows = [[*prompt, *completion] for prompt, completion in zip(prompt_ids, completion_ids, strict=True)]
        # The last token of a row predicts nothing that we score.
        width = max(map(len, rows)) - 1
        input_ids = torch.tensor([(row[:-1] + [pad_token_id] * width)[:width] for row in rows]).to(device)
        position_ids = torch.arange(width, device=device).unsqueeze(0).expand(len(rows), -1)
        column_N = (starts.to(device) + places.to(device))[row_N, place_N]
        logits_NV = scored_logits(
            model, row_N, column_N, input_ids=input_ids, position_ids=position_ids, use_cache=False
        )
    logprobs_N, entropies_N = selective_log_softmax(logits_NV, target_N, temperature, with_entropy=with_entropy)
    logprobs = logprobs_N.new_zeros(mask.shape).index_put((row_N, place_N), logprobs_N)
    entropies = None
    if entropies_N is not None:
        entropies = entropies_N.new_zeros(mask.shape).index_put((row_N, place_N), entropies_N)
    return logprobs, entropies, mask


def selective_log_softmax(
    logits_NV: Tensor, target_N: Tensor, temperature: float = 1.0, *, with_entropy: bool = False
) -> tuple[Tensor, Tensor | None]:
    """log softmax(logits / temperature) at the targets [N], with gradient, and the entropy [N], without; both fp32 at
    least, computed in chunks.
    """
    logprobs, entropies = _SelectiveLogSoftmax.apply(logits_NV, target_N, temperature, with_entropy)
    return logprobs, entropies if with_entropy else None


def score_rows(
    logits_RV: Tensor, target_R: Tensor, temperature: float, *, with_entropy: bool = True
) -> tuple[Tensor, Tensor, Tensor]:
    """Return log-probabilities of the targets, entropies (an empty tensor unless requested) and logsumexps of a chunk
    of rows, without gradient.
    """
    scaled = _wide(logits_RV) / temperature
    normalizer = scaled.logsumexp(dim=-1)
    chosen = scaled.gather(1, target_R.unsqueeze(1)).squeeze(1) - normalizer
    if not with_entropy:
        return chosen, chosen.new_empty(0), normalizer
    logprobs = scaled - normalizer.unsqueeze(1)
    return chosen, -(logprobs.exp() * logprobs.clamp(min=torch.finfo(logprobs.dtype).min)).sum(-1), normalizer


def gradient_rows(
    logits_RV: Tensor, target_R: Tensor, normalizer_R: Tensor, gradient_R: Tensor, temperature: float
) -> Tensor:
    """Return the gradient of a chunk's logits, in float32 at least, given that of its log-probabilities."""
    gradient = gradient_R.unsqueeze(1) / temperature
    share = (_wide(logits_RV) / temperature - normalizer_R.unsqueeze(1)).exp_().mul_(-gradient)
    return share.scatter_add_(1, target_R.unsqueeze(1), gradient)


def chunk_rows(vocabulary: int) -> int:
    """Return how many rows of logits are converted to float32 at once."""
    return max(1, CHUNK_ELEMENTS // vocabulary)


class _SelectiveLogSoftmax(torch.autograd.Function):
    """Keeps the logits as they are (bf16 on an accelerator) and one fp32 number a row; probabilities are made again,
    chunk by chunk.
    """

    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, target: Tensor, temperature: float, with_entropy: bool
    ) -> tuple[Tensor, Tensor]:
        normalizers, chosen, entropies = [], [], []
        for part, targets in zip(_chunks(logits), _chunks(target, logits.shape[1]), strict=True):
            logprob, entropy, normalizer = score_rows(part, targets, temperature, with_entropy=with_entropy)
            normalizers.append(normalizer)
            chosen.append(logprob)
            entropies.append(entropy)
        normalizer = torch.cat(normalizers)
        ctx.save_for_backward(logits, target, normalizer)
        ctx.temperature = temperature
        entropy = torch.cat(entropies)
        ctx.mark_non_differentiable(entropy)
        return torch.cat(chosen), entropy

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        logits, target, normalizer = ctx.saved_tensors
        result = torch.empty_like(logits)
        rows = chunk_rows(logits.shape[1])
        for start in range(0, logits.shape[0], rows):
            piece = slice(start, start + rows)
            result[piece] = gradient_rows(
                logits[piece], target[piece], normalizer[piece], gradients[0][piece], ctx.temperature
            )
        return result, None, None, None


def _wide(tensor: Tensor) -> Tensor:
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def _chunks(tensor: Tensor, vocabulary: int | None = None) -> tuple[Tensor, ...]:
    return torch.split(tensor, chunk_rows(vocabulary or tensor.shape[1]))
