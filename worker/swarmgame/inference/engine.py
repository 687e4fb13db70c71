"""Continuous batching on a CUDA device: one CUDA graph a step, lanes that are refilled as completions finish.

A step of a model is some hundred small kernels, and launching them takes the processor longer than running them takes the device, so a step (forward,
sampling, bookkeeping) is captured once as a graph and replayed. A graph reads and writes fixed memory: an `Arena` holds the caches, the lanes and the
completions of a call, for bucketed sizes, and is kept between calls until `release`. Finished completions leave their lane to waiting ones within the
step, on the device; when none wait, the step goes on with half of the lanes. The host waits for the device only every `SYNC_EVERY` steps. Graphs read
the model's own weights, so an update in place between calls needs no new graph. Models that are not written out are left to `eager.py`.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from swarmgame.inference import ops
from swarmgame.inference.eager import EagerSampler
from swarmgame.inference.graphs import Graph, GraphPool
from swarmgame.inference.llama import FusedLlamaDecoder, is_supported, join_projections
from swarmgame.inference.ops import AttentionShape, Batch, Lanes, LayerCache
from swarmgame.inference.sampler import ModelSampler, SamplingParams
from swarmgame.inference.token_sampler import TokenSampler

logger = logging.getLogger(__name__)

SYNC_EVERY = 16
"""Steps between two checks of how many completions are left: each check waits for the device."""

KEPT = 4
"""Arenas that are kept: training and evaluation, and for each a second one (a stage with longer prompts, an uneven batch)."""

PREFILL_TOKENS = 16_384
"""Prompt tokens, padding included, that are read at once."""

CAPTURED_PREFILL_TOKENS = 8192
"""Prompt tokens up to which reading them is captured as a graph."""

KEPT_PREFILLS = 4
"""Graphs of reading prompts that are kept, one a number of prompts and width."""

FIRST_TOKENS = 512
"""Completions whose first token is sampled at once."""

MEMORY_SHARE = 0.6
"""Share of the free memory that the cache of own tokens may take."""


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


class EngineSampler(ModelSampler):
    """Samples with graphs on a CUDA device; on a CPU, where tests run it, step by step.

    Args:
        kernels: the module of kernels; None takes `kernels.py` on a CUDA device and the definitions in `ops.py` elsewhere.
    """

    def __init__(self, model: Any, eos_token_ids: Sequence[int], pad_token_id: int, *, kernels: ModuleType | None = None) -> None:
        super().__init__(model, eos_token_ids, pad_token_id)
        self.max_lanes = 512
        self.occupancy = Occupancy()
        self._eager = EagerSampler(model, eos_token_ids, pad_token_id)
        self._kernels = kernels or (load_kernels(model.device) if model.device.type == "cuda" else ops)
        if is_supported(model):
            join_projections(model)  # here, before other threads read the weights
        self._arenas: OrderedDict[ArenaShape, Arena] = OrderedDict()
        self._addresses: tuple[int, ...] = ()

    def limit(self, rows: int) -> int:
        """See `Sampler.limit`: rows beyond the lanes wait for one, so a call may request several times as many."""
        self.max_lanes = rows
        return rows * 8 if self._kernels is not None and is_supported(self.model) else rows

    def release(self) -> bool:
        """Give the memory of all arenas back; they are made anew when they are needed."""
        held = bool(self._arenas)
        self._arenas.clear()
        return held

    def _rollout(
        self, prompts: Sequence[Sequence[int]], n: int, params: SamplingParams, uniforms_RT: Tensor, budgets: Sequence[int]
    ) -> tuple[Tensor, Tensor]:
        kernels = self._kernels if is_supported(self.model) else None
        if kernels is None:
            return self._eager._rollout(prompts, n, params, uniforms_RT, budgets)
        # Triton launches, and graphs are captured, on the current device.
        with torch.cuda.device(self.model.device) if self.model.device.type == "cuda" else nullcontext():
            return self._run(kernels, prompts, n, params, uniforms_RT, budgets)

    def _run(
        self,
        kernels: ModuleType,
        prompts: Sequence[Sequence[int]],
        n: int,
        params: SamplingParams,
        uniforms_RT: Tensor,
        budgets: Sequence[int],
    ) -> tuple[Tensor, Tensor]:
        rows = len(prompts) * n
        prompt_tokens, longest = _bucket(sum(map(len, prompts))), _bucket(max(map(len, prompts))) + params.max_new_tokens
        requested = ArenaShape(_even(min(self.max_lanes, rows)), _bucket(rows), prompt_tokens, longest, params)
        arena = self._arena(requested, kernels)
        arena.begin(prompts, n, uniforms_RT, budgets, min(requested.lanes, arena.shape.lanes))
        self.occupancy = arena.run()
        return arena.batch.ids[:rows], arena.batch.logprobs[:rows]

    def _arena(self, requested: ArenaShape, kernels: ModuleType) -> Arena:
        """Memory and graphs that are large enough, the last used first; all are dropped when the weights have moved: no graph would find them."""
        if self._weight_addresses() != self._addresses:
            self.release()
        for shape, arena in reversed(self._arenas.items()):
            if shape.holds(requested) and (shape.lanes >= requested.lanes or arena.is_limited):
                self._arenas.move_to_end(shape)
                return arena
        lanes = min(requested.lanes, self._lanes_that_fit(requested))
        while len(self._arenas) >= KEPT:
            self._arenas.popitem(last=False)
        shape, is_limited = replace(requested, lanes=lanes), lanes < requested.lanes
        capture = self.model.device.type == "cuda"
        arena = Arena(self.model, shape, self.eos_token_ids, kernels, capture=capture, is_limited=is_limited)
        self._addresses = self._weight_addresses()
        self._arenas[shape] = arena
        return arena

    def _weight_addresses(self) -> tuple[int, ...]:
        return tuple(parameter.data_ptr() for parameter in self.model.parameters())

    def _lanes_that_fit(self, requested: ArenaShape) -> int:
        """Lanes for which there is memory; the oldest arenas go while there are others and it is too little."""
        if self.model.device.type != "cuda":
            return requested.lanes
        lanes = self._measure_lanes(requested)
        while lanes < requested.lanes and self._arenas:
            self._arenas.popitem(last=False)
            lanes = self._measure_lanes(requested)
        if lanes < requested.lanes:
            logger.info(
                "memory for %d completions of %d tokens at once: the others wait for a lane", lanes, requested.params.max_new_tokens
            )
        return lanes

    def _measure_lanes(self, requested: ArenaShape) -> int:
        config, device = self.model.config, self.model.device
        numbers = 2 * config.num_hidden_layers * config.num_key_value_heads * self.model.model.layers[0].self_attn.head_dim
        token_bytes = numbers * self.model.dtype.itemsize
        free, _ = torch.cuda.mem_get_info(device)
        free += torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        lanes = int((MEMORY_SHARE * free - requested.prompt_tokens * token_bytes) / (token_bytes * requested.params.max_new_tokens))
        return max(1, lanes if lanes < 8 else lanes // 8 * 8)


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
        self, model: Any, shape: ArenaShape, eos_token_ids: Sequence[int], kernels: ModuleType, *, capture: bool, is_limited: bool
    ) -> None:
        self.shape, self.is_limited = shape, is_limited
        self._kernels = kernels
        self._decoder = decoder = FusedLlamaDecoder(model, kernels=kernels)
        self._sampler = TokenSampler(shape.params, eos_token_ids)
        self._pool = GraphPool(capture=capture)
        self._steps: dict[int, Graph] = {}
        self._prefills: OrderedDict[tuple[int, int], Graph] = OrderedDict()
        weights, device, steps = model.model.embed_tokens.weight, model.device, shape.params.max_new_tokens
        cos, sin = decoder.rotary_tables(shape.longest)
        self._attention = AttentionShape(
            decoder.num_heads, decoder.num_kv_heads, decoder.head_dim, decoder.scaling, cos.contiguous(), sin.contiguous(), shape.longest
        )
        size = LayerCache.size(decoder.num_kv_heads, decoder.head_dim, shape.prompt_tokens, shape.lanes, steps)
        self._caches = [
            # Zeros, not whatever was there: a share of 0 of NaN would be NaN.
            LayerCache(weights.new_zeros(size), weights.new_zeros(size), shape.prompt_tokens, steps, *_head_norms(layer))
            for layer in model.model.layers
        ]
        self._eos = torch.tensor(list(eos_token_ids), dtype=torch.long, device=device)

        def zeros(*size: int, dtype: torch.dtype = torch.long) -> Tensor:
            return torch.zeros(*size, dtype=dtype, device=device)

        lanes, rows = shape.lanes, shape.rows
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

    def begin(self, prompts: Sequence[Sequence[int]], n: int, uniforms_RT: Tensor, budgets: Sequence[int], lanes: int) -> None:
        """Read the prompts, sample the first token of every completion, and fill that many lanes."""
        self._count = lanes
        batch, rows, device = self.batch, len(prompts) * n, self.batch.ids.device
        lengths = torch.tensor([len(prompt) for prompt in prompts])
        starts = lengths.cumsum(0) - lengths
        batch.prompt_start[:rows], batch.prompt_length[:rows] = starts.repeat_interleave(n), lengths.repeat_interleave(n)
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
        forbid = torch.full((len(prompts),), int(self.shape.params.min_new_tokens > 0), dtype=torch.int32, device=device)
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
            while left <= (half := _even(-(-lanes // 2))) < lanes:
                lanes = self._compact(lanes, half)
            count = SYNC_EVERY
            if one_wave:  # all began together: before `certain` none ends, and at the longest budget all have ended
                count = min(max(count, self._certain - step), self._longest - step)
            for _ in range(count):
                self._step(lanes)
            step, lane_steps = step + count, lane_steps + count * lanes
            left = int(self.batch.state[2])
        return Occupancy(lane_steps, int(self.batch.state[3]))

    # ── a step ───────────────────────────────────────────────────────────────────────────────────────────────────────────
    def _step(self, lanes: int) -> None:
        """Feed one token a lane and sample the next ones. Nothing is waited for."""
        if lanes not in self._steps:
            self._steps[lanes] = Graph(f"a step of {lanes} lanes", partial(self._compute, lanes), self._pool)
        self._steps[lanes]()

    def _compute(self, count: int) -> None:
        lanes = self.lanes.first(count)
        attentions = [partial(self._kernels.decode_attention, layer=cache, lanes=lanes, shape=self._attention) for cache in self._caches]
        logits = self._decoder(lanes.token, attentions)
        source = torch.arange(count, device=logits.device)
        token, logprob = self._sample(logits, source, lanes.uniform, lanes.forbid_eos)
        self._kernels.advance(lanes, self.batch, token, logprob, self._eos, self.shape.params.min_new_tokens)

    def _sample(self, logits: Tensor, source: Tensor, uniforms: Tensor, forbid_eos: Tensor) -> tuple[Tensor, Tensor]:
        params = self.shape.params
        if params.is_plain:
            token, logprob = self._kernels.sample_tokens(logits, source, uniforms, forbid_eos, self._eos, params.temperature)
            return token, logprob
        return self._sampler(logits[source], uniforms, forbid_eos=forbid_eos[source] != 0 if params.min_new_tokens else False)

    # ── lanes ────────────────────────────────────────────────────────────────────────────────────────────────────────────
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

    # ── prompts ──────────────────────────────────────────────────────────────────────────────────────────────────────────
    def _prefill(self, prompts: Sequence[Sequence[int]], starts: Tensor) -> Tensor:
        """Read some prompts into the prompt cache; return the logits [P, V] behind their last tokens.

        They are padded on the right, so plain causal attention needs no mask.
        """
        count, longest = len(prompts), max(map(len, prompts))
        width = min(_bucket(longest, 32), max(longest, PREFILL_TOKENS // count))
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
        prefill = self._prefills.pop(key, None) or Graph(f"reading {count} prompts of {width} tokens", read, self._pool, given)
        while len(self._prefills) >= KEPT_PREFILLS:
            self._prefills.popitem(last=False)
        self._prefills[key] = prefill
        logits = prefill(given)
        assert logits is not None
        return logits

    def _read(self, count: int, width: int, given: Tensor) -> Tensor:
        """Logits [P, V] for ids, places in the cache and last tokens, one behind the other."""
        shape, tokens = self._attention, count * width
        ids, places, last = torch.split(given, [tokens, tokens, count])
        positions = torch.arange(width, device=given.device).repeat(count)

        def attention(qkv: Tensor, layer: LayerCache) -> Tensor:
            query, key = self._kernels.prefill_rotary(qkv, layer, shape, positions, places)
            value = qkv.view(tokens, -1, shape.head_dim)[:, shape.num_heads + shape.num_kv_heads :]
            query, key, value = (part.reshape(count, width, -1, shape.head_dim).transpose(1, 2) for part in (query, key, value))
            attended = F.scaled_dot_product_attention(query, key, value, is_causal=True, scale=shape.scaling, enable_gqa=True)
            return attended.transpose(1, 2).reshape(tokens, -1)

        return self._decoder(ids, [partial(attention, layer=cache) for cache in self._caches], last)


def load_kernels(device: torch.device) -> ModuleType | None:
    """The Triton kernels, of which one is compiled and run; None, with a warning, where that fails."""
    try:
        from swarmgame.inference import kernels

        with torch.cuda.device(device):
            one = torch.ones(1, 16, device=device)
            normed = kernels.add_rms_norm(one, None, one[0], 0.0)
            if not torch.equal(normed, one):
                raise RuntimeError(f"the norm of ones is {normed.tolist()}")
    except torch.cuda.OutOfMemoryError:
        raise
    except Exception as error:  # noqa: BLE001 - compilers, linkers and drivers raise whatever they like
        logger.warning(
            "the decode kernels cannot run here (%s: %s): tokens are sampled operation by operation, several times slower. Triton needs a C "
            "compiler (gcc), Python's headers and a writable cache folder, and a GPU of compute capability 8.0 or later",
            type(error).__name__,
            str(error).partition("\n")[0],
        )
        return None
    return kernels


def _head_norms(layer: Any) -> tuple[Tensor | None, Tensor | None, float]:
    """The scales and epsilon of the norms of queries and keys, where the architecture has them."""
    query, key = getattr(layer.self_attn, "q_norm", None), getattr(layer.self_attn, "k_norm", None)
    return (None, None, 0.0) if query is None or key is None else (query.weight, key.weight, float(query.variance_epsilon))


def _chunks(order: Sequence[int], lengths: Sequence[int]) -> list[list[int]]:
    """Cut prompts, sorted by length, where padded to the longest they would exceed `PREFILL_TOKENS`."""
    chunks: list[list[int]] = []
    for index in order:
        if chunks and (len(chunks[-1]) + 1) * lengths[index] <= PREFILL_TOKENS:
            chunks[-1].append(index)
        else:
            chunks.append([index])
    return chunks


def _even(lanes: int) -> int:
    """Round a number of lanes up, so that few graphs serve many calls: to 1, 2, 4, multiples of 8, and above 128 of 32."""
    unit = 1 if lanes <= 2 else 4 if lanes <= 4 else 8 if lanes <= 128 else 32
    return -(-lanes // unit) * unit


def _bucket(size: int, unit: int = 64) -> int:
    """Round a size up to a multiple of the unit, of twice the unit above 8 units, and so on; at most an eighth too much from there."""
    while unit * 8 < size:
        unit *= 2
    return -(-size // unit) * unit
