"""Continuous batching on a CUDA device: one CUDA graph a step, lanes that are refilled as completions finish.

A step of a model is some hundred small kernels, and launching them takes the processor longer than running them takes
the device, so a step (forward, sampling, bookkeeping) is captured once as a graph and replayed. An `Arena` holds the
graphs and the memory that they read and write, and is kept between calls until `release`. Graphs read the model's own
weights, so an update in place between calls needs no new graph. Models that are not written out are left to
`eager.py`.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from swarmgame.inference import ops
from swarmgame.inference.architecture import is_supported
from swarmgame.inference.arena import Arena, ArenaShape, Occupancy, bucket, even
from swarmgame.inference.decoding import Decoding
from swarmgame.inference.eager import EagerSampler
from swarmgame.inference.projections import join_projections
from swarmgame.inference.sampler import ModelSampler, SamplingParams

logger = logging.getLogger(__name__)

KEPT = 4
"""Arenas that are kept: training and evaluation, and for each a second one (a stage with longer prompts, an uneven
batch).
"""

MEMORY_SHARE = 0.6
"""Share of the free memory that the cache of own tokens may take."""


class EngineSampler(ModelSampler):
    """Samples with graphs on a CUDA device; on a CPU, where tests run it, step by step.

    Args:
        kernels: the module of kernels; None takes `kernels.py` on a CUDA device and the definitions in `ops.py`
            elsewhere.
    """

    def __init__(
        self, model: Any, eos_token_ids: Sequence[int], pad_token_id: int, *, kernels: ModuleType | None = None
    ) -> None:
        super().__init__(model, eos_token_ids, pad_token_id)
        self.max_lanes = 512
        self.occupancy = Occupancy()
        self._eager = EagerSampler(model, eos_token_ids, pad_token_id)
        self._kernels = kernels or (load_kernels(model.device) if model.device.type == "cuda" else ops)
        if is_supported(model):
            join_projections(model)  # here, before other threads read the weights
        self._arenas: OrderedDict[ArenaShape, Arena] = OrderedDict()
        self._addresses: tuple[int, ...] = ()

    @property
    def quickest(self) -> Decoding:
        """See `ModelSampler.quickest`."""
        return Decoding.FUSED if is_supported(self.model) else Decoding.CACHED

    def limit(self, rows: int) -> int:
        """See `Sampler.limit`: rows beyond the lanes wait for one, so a call may request several times as many."""
        self.max_lanes = rows
        has_lanes = self._kernels is not None and self.decoding is Decoding.FUSED and is_supported(self.model)
        return rows * 8 if has_lanes else rows

    def release(self) -> bool:
        """Give the memory of all arenas back; they are made anew when they are needed."""
        held = bool(self._arenas)
        self._arenas.clear()
        return held

    def _rollout(
        self,
        prompts: Sequence[Sequence[int]],
        n: int,
        params: SamplingParams,
        uniforms_RT: Tensor,
        budgets: Sequence[int],
    ) -> tuple[Tensor, Tensor]:
        kernels = self._kernels if self.decoding is Decoding.FUSED and is_supported(self.model) else None
        if kernels is None:
            self._eager.decoding = self.decoding
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
        prompt_tokens, longest = bucket(sum(map(len, prompts))), bucket(max(map(len, prompts))) + params.max_new_tokens
        requested = ArenaShape(even(min(self.max_lanes, rows)), bucket(rows), prompt_tokens, longest, params)
        arena = self._arena(requested, kernels)
        arena.begin(prompts, n, uniforms_RT, budgets, min(requested.lanes, arena.shape.lanes))
        self.occupancy = arena.run()
        return arena.batch.ids[:rows], arena.batch.logprobs[:rows]

    def _arena(self, requested: ArenaShape, kernels: ModuleType) -> Arena:
        """Memory and graphs that are large enough, the last used first; all are dropped when the weights have moved:
        no graph would find them.
        """
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
                "memory for %d completions of %d tokens at once: the others wait for a lane",
                lanes,
                requested.params.max_new_tokens,
            )
        return lanes

    def _measure_lanes(self, requested: ArenaShape) -> int:
        config, device = self.model.config, self.model.device
        numbers = (
            2 * config.num_hidden_layers * config.num_key_value_heads * self.model.model.layers[0].self_attn.head_dim
        )
        token_bytes = numbers * self.model.dtype.itemsize
        free, _ = torch.cuda.mem_get_info(device)
        free += torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        lanes = int(
            (MEMORY_SHARE * free - requested.prompt_tokens * token_bytes)
            / (token_bytes * requested.params.max_new_tokens)
        )
        return max(1, lanes if lanes < 8 else lanes // 8 * 8)


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
            "the decode kernels cannot run here (%s: %s): tokens are sampled operation by operation, several times "
            "slower. Triton needs a C "
            "compiler (gcc), Python's headers, a writable cache folder, and a GPU of compute capability 8.0 or later",
            type(error).__name__,
            str(error).partition("\n")[0],
        )
        return None
    return kernels
