"""Log-probabilities and entropies from hidden states and the weight of the head, without ever holding all logits.

Logits exist for one chunk of rows at a time. The forward pass keeps one float32 number per row; the backward pass
computes the chunk's logits again, turns them into their gradient in place, and adds up the gradient of the weight in
float32 over the chunks. Recomputing costs one more product with the head, a third of the head's forward and backward.
Under a frozen head (adapters) nothing is computed twice: the backward pass multiplies rows of H numbers, made in the
forward pass. The numbers are those of `logprobs.selective_log_softmax` on the logits of a linear head without bias. On
a CUDA device the passes over the logits are Triton kernels (`logprob_kernels`).

Shapes: N scored tokens, H hidden size, V vocabulary, R rows of a chunk.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from functools import cache
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from swarmgame.trainer.grpo import logprobs as rowwise

logger = logging.getLogger(__name__)

CHUNK_BYTES = 1 << 30
"""Logits of a chunk on a CUDA device: large enough for matrix products at full rate (3,500 rows of 151,936 logits in
bfloat16).
"""


def linear_logprobs(
    hidden_NH: Tensor,
    weight_VH: Tensor,
    target_N: Tensor,
    temperature: float = 1.0,
    forbidden: rowwise.ForbiddenIds | None = None,
) -> tuple[Tensor, Tensor]:
    """Return log softmax(hidden @ weightᵀ / temperature) at the targets, with gradient, and the entropies in nats,
    without.

    Args:
        hidden_NH, weight_VH: of one floating type; gradients flow to those that require them.
        target_N: ids below V.

    Returns:
        Both [N], in float32 (float64 for float64).
    """
    logprobs, entropies = _LinearLogprobs.apply(hidden_NH, weight_VH, target_N, temperature, forbidden)
    return logprobs, entropies


class _LinearLogprobs(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        target: Tensor,
        temperature: float,
        forbidden: rowwise.ForbiddenIds | None,
    ) -> tuple[Tensor, Tensor]:
        kind = torch.float64 if hidden.dtype == torch.float64 else torch.float32
        logprobs, entropies, normalizers = (
            torch.empty(len(hidden), device=hidden.device, dtype=kind) for _ in range(3)
        )
        needs_hidden, needs_weight = ctx.needs_input_grad[:2]
        # Under a frozen head (adapters) a row's gradient is the upstream number times a row that is known now: nothing
        # is computed twice.
        ctx.is_known = needs_hidden and not needs_weight
        slopes = torch.empty_like(hidden) if ctx.is_known else None
        for rows, logits in _logits(hidden, weight, forbidden):
            found = _score(logits, target[rows], temperature)
            for result, part in zip((logprobs, entropies, normalizers), found, strict=True):
                result[rows] = part
            if slopes is not None:
                _gradient_(logits, target[rows], found[2], torch.ones_like(found[2]), temperature)
                torch.mm(logits, weight, out=slopes[rows])
        if slopes is not None:
            ctx.save_for_backward(slopes)
        else:
            ctx.save_for_backward(hidden, weight, target, normalizers)
        ctx.temperature, ctx.forbidden = temperature, forbidden
        ctx.mark_non_differentiable(entropies)
        return logprobs, entropies

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None, None, None, None]:
        if ctx.is_known:
            (slopes,) = ctx.saved_tensors
            return (slopes * gradients[0].unsqueeze(1)).to(slopes.dtype), None, None, None, None
        hidden, weight, target, normalizers = ctx.saved_tensors
        needs_hidden, needs_weight = ctx.needs_input_grad[:2]
        of_hidden = torch.empty_like(hidden) if needs_hidden else None
        wide = torch.promote_types(weight.dtype, torch.float32)
        of_weight = torch.zeros_like(weight, dtype=wide) if needs_weight else None
        for rows, logits in _logits(hidden, weight, ctx.forbidden):
            _gradient_(logits, target[rows], normalizers[rows], gradients[0][rows], ctx.temperature)
            if of_hidden is not None:
                torch.mm(logits, weight, out=of_hidden[rows])
            if of_weight is not None:
                _add_product(of_weight, logits.t(), hidden[rows])
        return of_hidden, None if of_weight is None else of_weight.to(weight.dtype), None, None, None


def _logits(hidden: Tensor, weight: Tensor, forbidden: rowwise.ForbiddenIds | None) -> Iterator[tuple[slice, Tensor]]:
    """Yield the logits of chunks of rows of about equal size, in one buffer: each chunk overwrites the one before."""
    count, vocabulary = len(hidden), len(weight)
    most = (
        max(1, CHUNK_BYTES // (vocabulary * hidden.element_size()))
        if _kernels(hidden)
        else rowwise.chunk_rows(vocabulary)
    )
    if not count:
        return
    chunks = -(-count // most)
    size = -(-count // chunks)
    size = min(most, -(-size // 128) * 128)
    buffer = hidden.new_empty(min(size, count), vocabulary)
    for start in range(0, count, size):
        rows = slice(start, min(start + size, count))
        logits = torch.mm(hidden[rows], weight.t(), out=buffer[: rows.stop - start])
        if forbidden is not None:
            forbidden.of(rows).mask_(logits)
        yield rows, logits


def _score(logits: Tensor, target: Tensor, temperature: float) -> tuple[Tensor, Tensor, Tensor]:
    kernels = _kernels(logits)
    if kernels is not None:
        found: tuple[Tensor, Tensor, Tensor] = kernels.score(logits, target, temperature)
        return found
    return rowwise.score_rows(logits, target, temperature)


def _gradient_(logits: Tensor, target: Tensor, normalizers: Tensor, gradient: Tensor, temperature: float) -> None:
    kernels = _kernels(logits)
    if kernels is not None:
        kernels.gradient_(logits, target, normalizers, gradient, temperature)
    else:
        logits.copy_(rowwise.gradient_rows(logits, target, normalizers, gradient, temperature))


def _add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """Add left @ right to `total`, rounded to its type and not first to theirs, where torch can (CUDA, torch 2.8)."""
    if total.dtype == left.dtype:
        total.addmm_(left, right)
    elif total.is_cuda and hasattr(torch.ops.aten.addmm, "dtype_out"):
        torch.ops.aten.addmm.dtype_out(total, left, right, total.dtype, out=total)
    else:
        total.add_(left @ right)


def _kernels(like: Tensor) -> ModuleType | None:
    return _working_kernels(like.device) if like.is_cuda and like.dtype != torch.float64 else None


@cache
def _working_kernels(device: torch.device) -> ModuleType | None:
    """Return the kernels after one small call; None, with a warning, where Triton cannot build or run them."""
    try:
        from swarmgame.trainer.grpo import logprob_kernels

        logits = torch.zeros(1, 8, device=device)
        found = logprob_kernels.score(logits, torch.zeros(1, dtype=torch.int64, device=device), 1.0)
        torch.cuda.synchronize(device)
        if not torch.isfinite(torch.cat(found)).all():
            raise RuntimeError("the kernel returned numbers that are not finite")
    except torch.cuda.OutOfMemoryError:
        raise
    except Exception as error:  # noqa: BLE001 - Triton raises whatever its compiler, the linker or the driver do
        logger.warning(
            "Triton cannot build its kernels here (%s: %s): log-probabilities are computed by torch operations, "
            "which is slower. "
            "Triton needs a C compiler (gcc or clang) and the CUDA driver's library",
            type(error).__name__,
            str(error).splitlines()[0] if str(error) else "no message",
        )
        return None
    return logprob_kernels
