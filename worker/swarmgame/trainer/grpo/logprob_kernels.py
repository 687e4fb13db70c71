"""Triton kernels over the logits of a chunk of rows: log-probability, entropy and normaliser in one pass, the gradient
in place in another.

`linear_logprobs` calls them on a CUDA device; the numbers are those of `logprobs.selective_log_softmax`. Logits may be
of any floating type, sums are kept in float32. Import this module only where Triton is installed.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 4096
"""Logits that one program reads at a time."""


def score(
    logits_RV: Tensor, target_R: Tensor, temperature: float, *, block: int = BLOCK
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the log-probability of each row's target, the entropy in nats, and the logsumexp, each [R] in float32, at
    the temperature.
    """
    rows, vocabulary = logits_RV.shape
    logprobs, entropies, normalizers = (
        torch.empty(rows, device=logits_RV.device, dtype=torch.float32) for _ in range(3)
    )
    if rows:
        _score[(rows,)](
            logits_RV,
            target_R,
            logprobs,
            entropies,
            normalizers,
            logits_RV.stride(0),
            1.0 / temperature,
            vocabulary=vocabulary,
            BLOCK=block,
            num_warps=8,
        )
    return logprobs, entropies, normalizers


def gradient_(
    logits_RV: Tensor,
    target_R: Tensor,
    normalizers_R: Tensor,
    gradient_R: Tensor,
    temperature: float,
    *,
    block: int = BLOCK,
) -> None:
    """Overwrite logits with the gradient of them, given that of the log-probabilities."""
    rows, vocabulary = logits_RV.shape
    if rows:
        _gradient[(rows, triton.cdiv(vocabulary, block))](
            logits_RV,
            target_R,
            normalizers_R,
            gradient_R.contiguous(),
            logits_RV.stride(0),
            1.0 / temperature,
            vocabulary=vocabulary,
            BLOCK=block,
            num_warps=8,
        )


@triton.jit  # type: ignore[untyped-decorator]
def _score(  # type: ignore[no-untyped-def]  # the compiler reads annotations other than constexpr as code
    logits,
    targets,
    logprobs,
    entropies,
    normalizers,
    stride,
    inverse_temperature,
    vocabulary: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    logits += row * stride
    # The largest logit so far is one number, the sums are one per lane: only the maximum is reduced in every block.
    largest = -1.0e30
    weight = tl.zeros((BLOCK,), tl.float32)
    moment = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, vocabulary, BLOCK):
        column = start + tl.arange(0, BLOCK)
        value = (
            tl.load(logits + column, mask=column < vocabulary, other=-float("inf")).to(tl.float32) * inverse_temperature
        )
        new = tl.maximum(largest, tl.max(value, axis=0))
        shrink = tl.exp(largest - new)
        distance = value - new
        share = tl.exp(distance)
        # Sums of exp(x - max) and of (x - max) exp(x - max); the second moves with the maximum. A logit of -inf adds
        # nothing.
        moment = (moment + weight * (largest - new)) * shrink + tl.where(share > 0.0, share * distance, 0.0)
        weight = weight * shrink + share
        largest = new
    total = tl.sum(weight, axis=0)
    log_total = tl.log(total)
    chosen = tl.load(logits + tl.load(targets + row)).to(tl.float32) * inverse_temperature
    tl.store(logprobs + row, chosen - largest - log_total)
    tl.store(entropies + row, log_total - tl.sum(moment, axis=0) / total)
    tl.store(normalizers + row, largest + log_total)


@triton.jit  # type: ignore[untyped-decorator]
def _gradient(  # type: ignore[no-untyped-def]  # the compiler reads annotations other than constexpr as code
    logits,
    targets,
    normalizers,
    gradients,
    stride,
    inverse_temperature,
    vocabulary: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    place = logits + row * stride + column
    value = tl.load(place, mask=column < vocabulary, other=0.0).to(tl.float32) * inverse_temperature
    share = tl.exp(value - tl.load(normalizers + row))
    upstream = tl.load(gradients + row).to(tl.float32) * inverse_temperature
    hit = (column == tl.load(targets + row)).to(tl.float32)
    tl.store(place, (upstream * (hit - share)).to(logits.dtype.element_ty), mask=column < vocabulary)
