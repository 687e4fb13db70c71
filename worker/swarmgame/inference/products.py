"""The two large products of a decode step with few rows: which kernel is the quickest is measured where they run.

With up to `FEW_ROWS` rows a product takes as long as reading its weights, if all multiprocessors read; libraries choose kernels for more rows. So the
gate/up product with its activation, and the down product, have kernels of their own here beside cuBLAS's, and `choose_products` times the candidates
on the model's own weights, once a number of rows. Products of more rows, and in fp32, are cuBLAS's. Shapes: B rows, H hidden size, N inner size.
"""
# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator, misc"

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor
from triton.errors import TritonError

from swarmgame.inference.kernels import silu_mul

logger = logging.getLogger(__name__)

FEW_ROWS = 128

Product = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Products:
    """Chosen kernels.

    Args:
        rows: up to which they are used.
        gate_up: x [B, H], weight [2N, H] → SiLU(x · gateᵀ) · (x · upᵀ) [B, N].
        down: x [B, N], weight [H, N] → [B, H], or parts that add up to it [S, B, H] in fp32.
    """

    rows: int
    gate_up: Product
    down: Product


@triton.jit
def _gate_up_silu(
    x_ptr, weight_ptr, out_ptr, B, N, H: tl.constexpr, BLOCK_B: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_H: tl.constexpr
):  # fmt: skip
    rows = tl.arange(0, BLOCK_B)
    columns = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    inner = tl.arange(0, BLOCK_H)
    # Rows and columns beyond the end read the last one instead of nothing: loads without a mask are wider.
    x_places = x_ptr + tl.minimum(rows, B - 1)[:, None] * H + inner[None, :]
    weight_places = weight_ptr + tl.minimum(columns, N - 1)[None, :] * H + inner[:, None]
    gate = tl.zeros((BLOCK_B, BLOCK_N), tl.float32)
    up = tl.zeros((BLOCK_B, BLOCK_N), tl.float32)
    for start in range(0, H, BLOCK_H):
        x = tl.load(x_places + start)
        gate = tl.dot(x, tl.load(weight_places + start), gate)
        up = tl.dot(x, tl.load(weight_places + N * H + start), up)
    # Rounded as the products and the activation are rounded in the model's own forward.
    dtype = out_ptr.dtype.element_ty
    gate, up = gate.to(dtype).to(tl.float32), up.to(dtype).to(tl.float32)
    silu = (gate * tl.sigmoid(gate)).to(dtype).to(tl.float32)
    tl.store(out_ptr + rows[:, None] * N + columns[None, :], (silu * up).to(dtype), mask=(rows[:, None] < B) & (columns[None, :] < N))


@triton.jit
def _down_parts(
    x_ptr, weight_ptr, out_ptr, B, H, N: tl.constexpr, PART: tl.constexpr, BLOCK_B: tl.constexpr, BLOCK_H: tl.constexpr, BLOCK_N: tl.constexpr
):  # fmt: skip
    rows = tl.arange(0, BLOCK_B)
    columns = tl.program_id(0) * BLOCK_H + tl.arange(0, BLOCK_H)
    inner = tl.program_id(1) * PART + tl.arange(0, BLOCK_N)
    x_places = x_ptr + tl.minimum(rows, B - 1)[:, None] * N + inner[None, :]
    weight_places = weight_ptr + tl.minimum(columns, H - 1)[None, :] * N + inner[:, None]
    total = tl.zeros((BLOCK_B, BLOCK_H), tl.float32)
    for start in range(0, PART, BLOCK_N):
        total = tl.dot(tl.load(x_places + start), tl.load(weight_places + start), total)
    places = (tl.program_id(1) * B + rows[:, None]) * H + columns[None, :]
    tl.store(out_ptr + places, total, mask=(rows[:, None] < B) & (columns[None, :] < H))


def gate_up_silu(x: Tensor, weight: Tensor, block_n: int, block_h: int, warps: int, stages: int) -> Tensor:
    """The gate/up product and its activation in one launch; H must be a multiple of `block_h`."""
    rows, size = x.shape
    outputs = len(weight) // 2
    out = x.new_empty(rows, outputs)
    _gate_up_silu[(triton.cdiv(outputs, block_n),)](
        x, weight, out, rows, outputs, size, _block_of(rows), block_n, block_h, num_warps=warps, num_stages=stages
    )
    return out


def down_parts(x: Tensor, weight: Tensor, parts: int, block_h: int, block_n: int, warps: int, stages: int) -> Tensor:
    """The down product in parts along its inner dimension, of which each must be a multiple of `block_n`."""
    rows, inner = x.shape
    size = len(weight)
    out = torch.empty(parts, rows, size, dtype=torch.float32, device=x.device)
    _down_parts[(triton.cdiv(size, block_h), parts)](
        x, weight, out, rows, size, inner, inner // parts, _block_of(rows), block_h, block_n, num_warps=warps, num_stages=stages
    )
    return out


def bmm_parts(x: Tensor, weight: Tensor, parts: int) -> Tensor:
    """The down product in parts, as one batched product of cuBLAS's."""
    by_part = weight.view(len(weight), parts, -1).permute(1, 2, 0)
    return torch.bmm(x.view(len(x), parts, -1).transpose(0, 1), by_part, out_dtype=torch.float32)


def library_gate_up(x: Tensor, weight: Tensor) -> Tensor:
    """cuBLAS's product, and the activation as a launch of its own."""
    return silu_mul(F.linear(x, weight))


LIBRARY = Products(0, library_gate_up, F.linear)


def choose_products(rows: int, gate_up_weights: Sequence[Tensor], down_weights: Sequence[Tensor]) -> Products:
    """Time the candidates on all layers' weights, so that none is read from the cache, and return the quickest of each kind."""
    weight = gate_up_weights[0]
    if rows > FEW_ROWS or weight.dtype not in (torch.bfloat16, torch.float16):
        return LIBRARY
    inner, size = len(weight) // 2, weight.shape[1]
    gate_up: dict[str, Product] = {"library": library_gate_up}
    for block_n, block_h, warps, stages in ((32, 64, 4, 4), (32, 128, 4, 3), (64, 64, 4, 4), (64, 64, 8, 4), (64, 128, 8, 3)):
        if size % block_h == 0:
            gate_up[f"one launch {block_n}x{block_h}"] = partial(gate_up_silu, block_n=block_n, block_h=block_h, warps=warps, stages=stages)
    down: dict[str, Product] = {"library": F.linear}
    for parts in (2, 4):
        if inner % (64 * parts) == 0:
            down[f"library, {parts} parts"] = partial(bmm_parts, parts=parts)
    for parts, block_h, block_n, stages in ((4, 32, 64, 5), (4, 64, 64, 4)):
        if inner % (block_n * parts) == 0:
            down[f"{parts} parts {block_h}x{block_n}"] = partial(
                down_parts, parts=parts, block_h=block_h, block_n=block_n, warps=4, stages=stages
            )
    x, y = torch.randn_like(weight[:rows]), torch.randn_like(down_weights[0][:1]).expand(rows, inner).contiguous()
    return Products(rows, _quickest(gate_up, x, gate_up_weights), _quickest(down, y, down_weights))


def _quickest(candidates: Mapping[str, Product], x: Tensor, weights: Sequence[Tensor]) -> Product:
    """Time one graph a candidate: the product with each layer's weights. A candidate that the device refuses is left out."""
    seconds: dict[str, float] = {}
    for name, product in candidates.items():
        try:
            product(x, weights[0])
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, capture_error_mode="thread_local"):
                for weight in weights:
                    product(x, weight)
            seconds[name] = min(_replay_milliseconds(graph) for _ in range(5))
        except (RuntimeError, TypeError, TritonError) as error:  # TypeError: torch before 2.8 has no out_dtype
            logger.debug("%s cannot run here: %s", name, error)
    best = min(seconds, key=seconds.__getitem__, default="library")
    logger.info("%d rows: %s, of %s", len(x), best, {name: f"{1000 * value / len(weights):.1f} us" for name, value in seconds.items()})
    return candidates[best]


def _replay_milliseconds(graph: torch.cuda.CUDAGraph) -> float:
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    graph.replay()
    end.record()
    end.synchronize()
    return float(start.elapsed_time(end))


def _block_of(rows: int) -> int:
    return max(16, int(triton.next_power_of_2(rows)))
