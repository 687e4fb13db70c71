"""Memory and CUDA graphs of one shape of generation: caches, lanes, the completions of a call, and the steps over
them.

A graph reads and writes fixed memory, so everything that a step touches is made once, for bucketed sizes. Finished
completions leave their lane to waiting ones within the step, on the device; when none wait, the step goes on with half
of the lanes. The host waits for the device only every `SYNC_EVERY` steps. `engine.py` decides which arena a call gets
and how long it is kept.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from swarmgame.inference.architecture import Architecture
from swarmgame.inference.graphs import Graph, GraphPool
from swarmgame.inference.llama import FusedLlamaDecoder
from swarmgame.inference.ops import AttentionShape, Batch, Lanes, LayerCache, complete
from swarmgame.inference.projections import query_key_value_bias
from swarmgame.inference.sampler import SamplingParams
from swarmgame.inference.token_sampler import TokenSampler

SYNC_EVERY = 16
"""Steps between two checks of how many completions are left: each check waits for the device."""

PREFILL_TOKENS = 16_384
"""Prompt tokens, padding included, that are read at once."""

CAPTURED_PREFILL_TOKENS = 8192
"""Prompt tokens up to which reading them is captured as a graph."""

KEPT_PREFILLS = 4
"""Graphs of reading prompts that are kept, one a number of prompts and width."""

FIRST_TOKENS = 512
"""Completions whose first token is sampled at once."""


@dataclass(frozen=True)
class ArenaShape:
    """Bucketed sizes: what memory and graphs are made for.

    Args:
        lanes: rows of a step.
        rows: completions of a call.
        prompt_tokens: of all prompts together.
        longest: of the prompts, plus `params.max_new_tokens`.
    """

    lanes: int
    rows: int
    prompt_tokens: int
    longest: int
    params: SamplingParams

    def holds(self, other: ArenaShape) -> bool:
        """Whether memory for this shape is enough for another one, lanes aside."""
        enough = self.rows >= other.rows and self.prompt_tokens >= other.prompt_tokens and self.longest >= other.longest
        return enough and self.params == other.params


@dataclass(frozen=True)
class Occupancy:
    """How busy lanes were in one call.

    Args:
        lane_steps: lanes times steps.
        tokens: those of them in which a completion got a token.
    """

    lane_steps: int = 0
    tokens: int = 0

    @property
    def share(self) -> float:
        return self.tokens / self.lane_steps if self.lane_steps else 1.0


class Arena:
    """Memory and graphs for one shape.

    Args:
        model: one that `is_supported`; its weights are read where they are.
        eos_token_ids: ids that end a completion.
        kernels: the module `kernels` or `ops`.
        capture: replay steps as CUDA graphs.
        is_limited: there was no memory for more lanes.
    """

    def __init__(
        self,
        model: Any,
        shape: ArenaShape,
        eos_token_ids: Sequence[int],
        kernels: ModuleType,
        *,
        capture: bool,
        is_limited: bool,
    ) -> None:
        self.shape, self.is_limited = shape, is_limited
        self._kernels = kernels
        self._decoder = decoder = FusedLlamaDecoder(model, kernels=kernels)
        self._sampler = TokenSampler(shape.params, eos_token_ids)
        self._pool = GraphPool(capture=capture)
        self._steps: dict[int, Graph] = {}
        self._prefills: OrderedDict[tuple[int, int], Graph] = OrderedDict()
        weights, device, steps = model.model.embed_tokens.weight, model.device, shape.params.max_new_tokens
        architecture = decoder.architecture
        shapes = {
            rotates: AttentionShape(
                architecture.num_heads,
                architecture.num_kv_heads,
                architecture.head_dim,
                decoder.scaling,
                cos.contiguous(),
                sin.contiguous(),
                shape.longest,
            )
            for rotates, (cos, sin) in decoder.rotary_tables(shape.longest).items()
        }
        self._shapes = [shapes[rotates] for rotates in architecture.rotary]
        size = LayerCache.size(
            architecture.num_kv_heads, architecture.head_dim, shape.prompt_tokens, shape.lanes, steps
        )
        self._caches = [
            # Zeros, not whatever was there: a share of 0 of NaN would be NaN.
            LayerCache(
                weights.new_zeros(size),
                weights.new_zeros(size),
                shape.prompt_tokens,
                steps,
                *_head_norms(layer, architecture),
                bias=query_key_value_bias(layer),
            )
            for layer in model.model.layers
        ]
        self._eos = torch.tensor(list(eos_token_ids), dtype=torch.long, device=device)

        def zeros(*size: int, dtype: torch.dtype = torch.long) -> Tensor:
            return torch.zeros(*size, dtype=dtype, device=device)

        lanes, rows = shape.lanes, shape.rows
        self._every_lane = torch.arange(lanes, device=device)
        self.lanes = Lanes(
            token=zeros(lanes),
            row=zeros(lanes),
            slot=zeros(lanes),
            length=zeros(lanes),
            prompt_start=zeros(lanes),
            prompt_length=zeros(lanes),
            forbid_eos=zeros(lanes, dtype=torch.int32),
            uniform=zeros(lanes, dtype=torch.float64),
        )
        self.batch = Batch(
            ids=zeros(rows, steps),
            logprobs=zeros(rows, steps, dtype=torch.float32),
            uniforms=zeros(rows, 0 if shape.params.greedy else steps, dtype=torch.float64),
            budget=zeros(rows),
            first_token=zeros(rows),
            prompt_start=zeros(rows),
            prompt_length=zeros(rows),
            queue=zeros(rows),
            state=zeros(4),
        )
        self._count = self._longest = self._certain = 0

    def begin(
        self, prompts: Sequence[Sequence[int]], n: int, uniforms_RT: Tensor, budgets: Sequence[int], lanes: int
    ) -> None:
        """Read the prompts, sample the first token of every completion, and fill that many lanes."""
        self._count = lanes
        batch, rows, device = self.batch, len(prompts) * n, self.batch.ids.device
        lengths = torch.tensor([len(prompt) for prompt in prompts])
        starts = lengths.cumsum(0) - lengths
        batch.prompt_start[:rows], batch.prompt_length[:rows] = (
            starts.repeat_interleave(n),
            lengths.repeat_interleave(n),
        )
        batch.budget[:rows] = torch.tensor(budgets)
        if batch.uniforms.numel():
            batch.uniforms[:rows] = uniforms_RT
        # Prompts of similar length are read together: padding is computed like anything else.
        order, logits = sorted(range(len(prompts)), key=lambda index: len(prompts[index])), None
        for chunk in _chunks(order, lengths.tolist()):
            read = self._prefill([prompts[index] for index in chunk], starts[chunk])
            logits = read.new_empty(len(prompts), read.shape[1]) if logits is None else logits
            logits[torch.tensor(chunk, device=device)] = read
        assert logits is not None
        forbid = torch.full(
            (len(prompts),), int(self.shape.params.min_new_tokens > 0), dtype=torch.int32, device=device
        )
        source = torch.arange(len(prompts), device=device).repeat_interleave(n)
        uniforms = batch.uniforms[:, 0].contiguous() if batch.uniforms.numel() else batch.uniforms.flatten()
        for start in range(0, rows, FIRST_TOKENS):
            part = slice(start, min(start + FIRST_TOKENS, rows))
            token, logprob = self._sample(logits, source[part], uniforms[part], forbid)
            batch.ids[part, 0], batch.logprobs[part, 0], batch.first_token[part] = token, logprob, token
        done = torch.isin(batch.first_token[:rows], self._eos) | (batch.budget[:rows] <= 1)
        waiting = (~done).nonzero().squeeze(1)
        batch.queue[: len(waiting)] = waiting
        batch.state.copy_(torch.tensor([0, len(waiting), len(waiting), 0]))
        self._fill(len(waiting))
        self._longest = max(budgets) - 1
        self._certain = min(budgets) - 1 if not len(self._eos) else min(*budgets, self.shape.params.min_new_tokens) - 1

    def run(self) -> Occupancy:
        """Take steps until every completion is finished."""
        lanes, step, lane_steps = self._count, 0, 0
        left = int(self.batch.state[2])
        one_wave = left <= lanes
        while left > 0:
            while left <= (half := even(-(-lanes // 2))) < lanes:
                lanes = self._compact(lanes, half)
            count = SYNC_EVERY
            if one_wave:  # all began together: before `certain` none ends, and at the longest budget all have ended
                count = min(max(count, self._certain - step), self._longest - step)
            for _ in range(count):
                self._step(lanes)
            step, lane_steps = step + count, lane_steps + count * lanes
            left = int(self.batch.state[2])
        return Occupancy(lane_steps, int(self.batch.state[3]))

    # ── a step
    def _step(self, lanes: int) -> None:
        """Feed one token a lane and sample the next ones. Nothing is waited for."""
        if lanes not in self._steps:
            self._steps[lanes] = Graph(f"a step of {lanes} lanes", partial(self._compute, lanes), self._pool)
        self._steps[lanes]()

    def _compute(self, count: int) -> None:
        lanes = self.lanes.first(count)
        attentions = [
            partial(self._kernels.decode_attention, layer=cache, lanes=lanes, shape=shape)
            for cache, shape in zip(self._caches, self._shapes, strict=True)
        ]
        logits = self._decoder(lanes.token, attentions)
        token, logprob = self._sample(logits, self._every_lane[:count], lanes.uniform, lanes.forbid_eos)
        self._kernels.advance(lanes, self.batch, token, logprob, self._eos, self.shape.params.min_new_tokens)

    def _sample(self, logits: Tensor, source: Tensor, uniforms: Tensor, forbid_eos: Tensor) -> tuple[Tensor, Tensor]:
        params = self.shape.params
        if params.is_plain:
            token, logprob = self._kernels.sample_tokens(
                logits, source, uniforms, forbid_eos, self._eos, params.temperature
            )
            return token, logprob
        return self._sampler(
            logits[source], uniforms, forbid_eos=forbid_eos[source] != 0 if params.min_new_tokens else False
        )

    # ── lanes
    def _fill(self, waiting: int) -> None:
        """Give every lane its first completion."""
        lanes, batch, count = self.lanes, self.batch, min(waiting, self._count)
        for value in vars(lanes).values():
            value.zero_()
        lanes.slot.copy_(torch.arange(self.shape.lanes))
        lanes.row.fill_(-1)
        rows = batch.queue[:count]
        lanes.row[:count], lanes.token[:count] = rows, batch.first_token[rows]
        lanes.prompt_start[:count], lanes.prompt_length[:count] = batch.prompt_start[rows], batch.prompt_length[rows]
        lanes.forbid_eos[:count] = int(self.shape.params.min_new_tokens > 1)
        if batch.uniforms.shape[1] > 1:
            lanes.uniform[:count] = batch.uniforms[rows, 1]
        batch.state[0] = count

    def _compact(self, lanes: int, fewer: int) -> int:
        """Go on with fewer lanes, the busy ones first; the caches stay where they are."""
        self.lanes.move((self.lanes.row[:lanes] < 0).to(torch.uint8).argsort(stable=True)[:fewer])
        return fewer

    # ── prompts
    def _prefill(self, prompts: Sequence[Sequence[int]], starts: Tensor) -> Tensor:
        """Read some prompts into the prompt cache; return the logits [P, V] behind their last tokens.

        They are padded on the right, so plain causal attention needs no mask.
        """
        count, longest = len(prompts), max(map(len, prompts))
        width = min(bucket(longest, 32), max(longest, PREFILL_TOKENS // count))
        lengths = torch.tensor([len(prompt) for prompt in prompts])
        ids = torch.tensor([[*prompt, *[0] * (width - len(prompt))] for prompt in prompts]).view(-1)
        position = torch.arange(width).expand(count, -1)
        places = torch.where(position < lengths[:, None], starts[:, None] + position, -1).reshape(-1)
        last = torch.arange(count) * width + lengths - 1
        given = torch.cat([ids, places, last]).to(self.batch.ids.device)
        # Many tokens keep the device busy longer than their launches take.
        key, read = (count, width), partial(self._read, count, width)
        if count * width > CAPTURED_PREFILL_TOKENS:
            return read(given)
        prefill = self._prefills.pop(key, None) or Graph(
            f"reading {count} prompts of {width} tokens", read, self._pool, given
        )
        while len(self._prefills) >= KEPT_PREFILLS:
            self._prefills.popitem(last=False)
        self._prefills[key] = prefill
        logits = prefill(given)
        assert logits is not None
        return logits

    def _read(self, count: int, width: int, given: Tensor) -> Tensor:
        """Logits [P, V] for ids, places in the cache and last tokens, one behind the other."""
        tokens = count * width
        ids, places, last = torch.split(given, [tokens, tokens, count])
        positions = torch.arange(width, device=given.device).repeat(count)

        def attention(qkv: Tensor, layer: LayerCache, shape: AttentionShape) -> Tensor:
            qkv = complete(qkv, layer.bias, layer.keys.dtype)
            query, key = self._kernels.prefill_rotary(qkv, layer, shape, positions, places)
            value = qkv.view(tokens, -1, shape.head_dim)[:, shape.num_heads + shape.num_kv_heads :]
            query, key, value = (
                part.reshape(count, width, -1, shape.head_dim).transpose(1, 2) for part in (query, key, value)
            )
            attended = F.scaled_dot_product_attention(
                query, key, value, is_causal=True, scale=shape.scaling, enable_gqa=True
            )
            return attended.transpose(1, 2).reshape(tokens, -1)

        attentions = [
            partial(attention, layer=cache, shape=shape)
            for cache, shape in zip(self._caches, self._shapes, strict=True)
        ]
        return self._decoder(ids, attentions, last)


def _head_norms(layer: Any, architecture: Architecture) -> tuple[Tensor | None, Tensor | None, float]:
    """The scales and epsilon of the norms of queries and keys, where the architecture has them, a head at a time."""
    query, key = getattr(layer.self_attn, "q_norm", None), getattr(layer.self_attn, "k_norm", None)
    if architecture.norms_behind or query is None or key is None:
        return None, None, 0.0
    return query.weight, key.weight, float(query.variance_epsilon)


def _chunks(order: Sequence[int], lengths: Sequence[int]) -> list[list[int]]:
    """Cut prompts, sorted by length, where padded to the longest they would exceed `PREFILL_TOKENS`."""
    chunks: list[list[int]] = []
    for index in order:
        if chunks and (len(chunks[-1]) + 1) * lengths[index] <= PREFILL_TOKENS:
            chunks[-1].append(index)
        else:
            chunks.append([index])
    return chunks


def even(lanes: int) -> int:
    """Round up a number of lanes, so that few graphs serve many calls: 1, 2, 4, multiples of 8, above 128 of 32."""
    unit = 1 if lanes <= 2 else 4 if lanes <= 4 else 8 if lanes <= 128 else 32
    return -(-lanes // unit) * unit


def bucket(size: int, unit: int = 64) -> int:
    """Round a size up to a multiple of the unit, of twice the unit above 8 units, and so on; at most an eighth too
    much from there.
    """
    while unit * 8 < size:
        unit *= 2
    return -(-size // unit) * unit
