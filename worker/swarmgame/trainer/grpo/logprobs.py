"""Log-probabilities of given completions under a model that learns: the forward pass of training.

Prompt and completion of a row stand side by side and are padded on the right, so that plain causal attention needs no
mask; where many rows share a prompt it is read once instead (`shared_prompts`). The language model's head sees only
the positions that predict a completion token, EOS among them. Invariants: token ids go in and nothing is ever
re-tokenised; a fresh rollout gets the log-probabilities that its sampler reported (to 1e-4 in fp32); no fp32 copy of
all logits exists.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from swarmgame.inference.arguments import Arguments
from swarmgame.inference.scored_logits import scored_logits
from swarmgame.trainer.grpo.shared_prompts import is_worthwhile, shared_logits

Sharing = Literal["never", "worthwhile", "always"]

CHUNK_ELEMENTS = 1 << 25
"""Logits that are converted to fp32 at once: 128 MiB."""


@dataclass(frozen=True)
class ForbiddenIds:
    """Ids that count as impossible in some of the scored rows.

    Args:
        rows_N: bool, in which rows.
        ids: [E].
    """

    rows_N: Tensor
    ids: Tensor

    def of(self, rows: slice) -> ForbiddenIds:
        """Return those of a chunk of rows."""
        return ForbiddenIds(self.rows_N[rows], self.ids)

    def mask_(self, logits_NV: Tensor) -> None:
        """Make the ids impossible in these logits, in place, without waiting for the device."""
        kept = torch.where(self.rows_N.unsqueeze(1), -torch.inf, logits_NV.index_select(1, self.ids))
        logits_NV.index_copy_(1, self.ids, kept)


@dataclass(frozen=True)
class EarlyEos:
    """The ids that end a completion, which no sampler draws before a minimum length (`minNewTokens`).

    Training scores the distribution that was sampled from, so the ratio of a fresh rollout is 1 at such positions too.

    Args:
        ids: not empty.
        before: tokens before which they are not drawn.
    """

    ids: tuple[int, ...]
    before: int

    def forbidden(self, place_N: Tensor, target_N: Tensor) -> ForbiddenIds:
        """Return what was forbidden at places of completions. A rollout that ended too early (re-tokenised, or sent by
        a peer that forbids nothing) is scored as it is: nothing is forbidden where its EOS stands.
        """
        ids = torch.tensor(self.ids, device=place_N.device)
        return ForbiddenIds((place_N < self.before) & ~torch.isin(target_N, ids), ids)


def completion_logprobs(
    model: Any,
    prompt_ids: Sequence[Sequence[int]],
    completion_ids: Sequence[Sequence[int]],
    temperature: float,
    *,
    with_entropy: bool,
    pad_token_id: int = 0,
    share_prompts: Sharing = "worthwhile",
    early_eos: EarlyEos | None = None,
    states: list[Tensor] | None = None,
) -> tuple[Tensor, Tensor | None, Tensor]:
    """Scores a micro-batch of rollouts.

    Args:
        model: a causal language model of transformers, or one wrapped by peft; gradients flow when they are enabled.
        prompt_ids, completion_ids: one a row, each non-empty, lengths may differ; EOS belongs to the completion.
        temperature: the one sampled at.
        with_entropy: also return the entropy at each position, without gradient.
        pad_token_id: any valid id; what stands there influences nothing.
        share_prompts: read a prompt once, in a pass of its own: never, where that is quicker, or always. Never for a
            sharded model: its ranks must make the same number of passes, and its weights are gathered for a layer's
            output alone, not for the keys and values that the second pass takes from the first.
        early_eos: None where EOS may be sampled at once.
        states: the hidden states [N, H] of the scored positions, row by row, are added to it, with gradient.

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

    if share_prompts == "always" or (
        share_prompts == "worthwhile" and is_worthwhile(model, prompt_ids, completion_ids)
    ):
        logits_NV = shared_logits(model, prompt_ids, completion_ids, row_N, place_N, pad_token_id, states)
    else:
        rows = [[*prompt, *completion] for prompt, completion in zip(prompt_ids, completion_ids, strict=True)]
        # The last token of a row predicts nothing that we score.
        width = max(map(len, rows)) - 1
        input_ids = torch.tensor([(row[:-1] + [pad_token_id] * width)[:width] for row in rows]).to(device)
        position_ids = torch.arange(width, device=device).unsqueeze(0).expand(len(rows), -1)
        column_N = (starts.to(device) + places.to(device))[row_N, place_N]
        logits_NV = scored_logits(
            model, row_N, column_N, states=states, input_ids=input_ids, **Arguments(model).uncached(position_ids)
        )
    forbidden = None if early_eos is None else early_eos.forbidden(place_N, target_N)
    logprobs_N, entropies_N = selective_log_softmax(
        logits_NV, target_N, temperature, with_entropy=with_entropy, forbidden=forbidden
    )
    logprobs = logprobs_N.new_zeros(mask.shape).index_put((row_N, place_N), logprobs_N)
    entropies = None
    if entropies_N is not None:
        entropies = entropies_N.new_zeros(mask.shape).index_put((row_N, place_N), entropies_N)
    return logprobs, entropies, mask


def selective_log_softmax(
    logits_NV: Tensor,
    target_N: Tensor,
    temperature: float = 1.0,
    *,
    with_entropy: bool = False,
    forbidden: ForbiddenIds | None = None,
) -> tuple[Tensor, Tensor | None]:
    """log softmax(logits / temperature) at the targets [N], with gradient, and the entropy [N], without; both fp32 at
    least, computed in chunks.
    """
    logprobs, entropies = _SelectiveLogSoftmax.apply(logits_NV, target_N, temperature, with_entropy, forbidden)
    return logprobs, entropies if with_entropy else None


def score_rows(
    logits_RV: Tensor,
    target_R: Tensor,
    temperature: float,
    *,
    with_entropy: bool = True,
    forbidden: ForbiddenIds | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return log-probabilities of the targets, entropies (an empty tensor unless requested) and logsumexps of a chunk
    of rows, without gradient.
    """
    scaled = _scaled(logits_RV, temperature, forbidden)
    normalizer = scaled.logsumexp(dim=-1)
    chosen = scaled.gather(1, target_R.unsqueeze(1)).squeeze(1) - normalizer
    if not with_entropy:
        return chosen, chosen.new_empty(0), normalizer
    logprobs = scaled - normalizer.unsqueeze(1)
    return chosen, -(logprobs.exp() * logprobs.clamp(min=torch.finfo(logprobs.dtype).min)).sum(-1), normalizer


def gradient_rows(
    logits_RV: Tensor,
    target_R: Tensor,
    normalizer_R: Tensor,
    gradient_R: Tensor,
    temperature: float,
    forbidden: ForbiddenIds | None = None,
) -> Tensor:
    """Return the gradient of a chunk's logits, in float32 at least, given that of its log-probabilities."""
    gradient = gradient_R.unsqueeze(1) / temperature
    scaled = _scaled(logits_RV, temperature, forbidden)
    share = scaled.sub_(normalizer_R.unsqueeze(1)).exp_().mul_(-gradient)
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
        ctx: Any,
        logits: Tensor,
        target: Tensor,
        temperature: float,
        with_entropy: bool,
        forbidden: ForbiddenIds | None,
    ) -> tuple[Tensor, Tensor]:
        normalizers, chosen, entropies = [], [], []
        for rows in _chunks(logits):
            logprob, entropy, normalizer = score_rows(
                logits[rows],
                target[rows],
                temperature,
                with_entropy=with_entropy,
                forbidden=None if forbidden is None else forbidden.of(rows),
            )
            normalizers.append(normalizer)
            chosen.append(logprob)
            entropies.append(entropy)
        normalizer = torch.cat(normalizers)
        ctx.save_for_backward(logits, target, normalizer)
        ctx.temperature, ctx.forbidden = temperature, forbidden
        entropy = torch.cat(entropies)
        ctx.mark_non_differentiable(entropy)
        return torch.cat(chosen), entropy

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None, None]:
        logits, target, normalizer = ctx.saved_tensors
        result = torch.empty_like(logits)
        for rows in _chunks(logits):
            forbidden = None if ctx.forbidden is None else ctx.forbidden.of(rows)
            result[rows] = gradient_rows(
                logits[rows], target[rows], normalizer[rows], gradients[0][rows], ctx.temperature, forbidden
            )
        return result, None, None, None, None


def _scaled(logits_RV: Tensor, temperature: float, forbidden: ForbiddenIds | None) -> Tensor:
    """Return a copy of the logits that may be written, in fp32 at least."""
    scaled = (logits_RV if logits_RV.dtype == torch.float64 else logits_RV.float()) / temperature
    if forbidden is not None:
        forbidden.mask_(scaled)
    return scaled


def _chunks(logits_NV: Tensor) -> list[slice]:
    """Return the chunks of rows; one without rows where there are none."""
    rows = chunk_rows(logits_NV.shape[1])
    return [slice(start, start + rows) for start in range(0, max(1, len(logits_NV)), rows)]
