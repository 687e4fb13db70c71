"""Decoding with fixed shapes: one step (forward, draw, bookkeeping) that needs nothing from the host, and is replayed as a CUDA graph.

A decode step of a language model is some hundreds of small kernels, and starting them takes the processor longer than running them takes the
device. A graph starts them all at once. For that, everything a step reads or writes stays where it is: the number of the step, the last token,
positions, chance and results are tensors on the device. Graphs are made the first time a shape is met, and kept for later calls: they read the
model's own weights, so that an update between calls needs no new graph. On a device without graphs the same step runs operation by operation.
Invariants: a step changes nothing but its own memory; the host waits for the device only where `finished` is read.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from swarmgame.trainer.grpo.attention_static import Hidden, StaticAttention, StaticCache
from swarmgame.trainer.grpo.forward import Forward
from swarmgame.trainer.grpo.prefill import Prefilled
from swarmgame.trainer.grpo.sampler import Draw, SamplingParams

logger = logging.getLogger(__name__)

SMALLEST_WINDOW = 128
"""Steps in the first window; each further one is twice as long. A row so reads at most twice as much of its own past as there is."""


@dataclass(frozen=True)
class Shape:
    """What a decoding's memory is made for: prompts, slots a prompt, padded width of the prompts, and how to draw."""

    prompts: int
    slots: int
    width: int
    params: SamplingParams


class StaticDecoder:
    """Memory and graphs for one shape.

    Args:
        model: one that `forward.knows`; its weights are read where they are.
        eos_token_ids: ids that end a completion.
        capture: replay steps as CUDA graphs.
    """

    def __init__(self, model: Any, shape: Shape, eos_token_ids: Sequence[int], *, capture: bool) -> None:
        self.shape = shape
        self._forward = Forward(model, fused=False)
        self._draw = Draw(shape.params, eos_token_ids)
        self._rotation = self._forward.rotation(shape.width + shape.params.max_new_tokens)
        self._capture = capture
        self._graphs: dict[tuple[int, int, bool], torch.cuda.CUDAGraph | None] = {}
        self._pool: Any = None
        device, weights = model.device, model.model.embed_tokens.weight
        rows, steps = shape.prompts * shape.slots, shape.params.max_new_tokens
        heads, size = self._forward.keys, self._forward.head_dim
        layers = model.config.num_hidden_layers
        self._caches = [StaticCache(shape.prompts, shape.slots, heads, shape.width, steps, size, weights) for _ in range(layers)]
        self._eos = torch.tensor(list(eos_token_ids), dtype=torch.long, device=device)
        self._hidden_prompt = weights.new_zeros(shape.prompts * heads, 1, shape.width)
        self._hidden_own = weights.new_zeros(1, 1, steps)
        self._places = torch.arange(steps, device=device)
        self._step = torch.zeros(1, dtype=torch.long, device=device)
        self._token = torch.zeros(rows, dtype=torch.long, device=device)
        self._position = torch.zeros(rows, dtype=torch.long, device=device)
        self._finished = torch.zeros(rows, dtype=torch.bool, device=device)
        self._chance = torch.zeros(0 if shape.params.greedy else steps, rows, dtype=torch.float64, device=device)
        self._ids = torch.zeros(steps, rows, dtype=torch.long, device=device)
        self._logprobs = torch.zeros(steps, rows, device=device)
        self._attentions: dict[tuple[int, int], list[StaticAttention]] = {}
        self.slots = shape.slots

    # ── a call ───────────────────────────────────────────────────────────────────────────────────────────────────────────
    def begin(self, read: Prefilled, chance: Tensor) -> None:
        """Takes what the prompts, padded to the width of the shape, left behind, and draws the first token of every row.

        Args:
            chance: [S, P * M]; see `uniforms`.
        """
        slots = self.slots = self.shape.slots
        for static, layer in zip(self._caches, read.cache.layers, strict=True):
            static.fill(layer.keys, layer.values)
        self._hidden_prompt.zero_()
        if read.mask is not None:
            hidden = read.mask.repeat_interleave(self._forward.keys, dim=0).unsqueeze(1)
            self._hidden_prompt.masked_fill_(~hidden, -torch.inf)
        if not self.shape.params.greedy:
            self._chance.copy_(chance)
        self._position.copy_(read.positions.repeat_interleave(slots))
        self._step.zero_()
        self._finished.zero_()
        logits = read.logits.repeat_interleave(slots, dim=0)
        self._take(*self._draw(logits, chance[0], forbid_eos=self.shape.params.min_new_tokens > 0))

    def advance(self, step: int) -> None:
        """Feeds the token drawn at `step`, and draws the next one. Nothing is waited for."""
        steps = self.shape.params.max_new_tokens
        window = SMALLEST_WINDOW
        while window <= step:
            window *= 2
        key = self.slots, min(window, steps), step + 1 < self.shape.params.min_new_tokens
        graph = self._graphs.get(key)
        if graph is not None:
            graph.replay()
            return
        # Taken as it is: a real step, which also makes what libraries make at their first call. Recorded after that, which runs nothing.
        self._advance(*key)
        if self._capture and key not in self._graphs:
            self._graphs[key] = self._recorded(*key)

    @property
    def finished(self) -> Tensor:
        """Which rows have drawn an EOS, [P, M]; reading it on the host waits for all steps so far."""
        return self._finished[: self.shape.prompts * self.slots].view(self.shape.prompts, self.slots)

    def drawn(self, start: int, stop: int) -> tuple[Tensor, Tensor]:
        """Ids and log-probabilities of the steps in between, [stop - start, P * M], of whoever holds the slots now."""
        rows = self.shape.prompts * self.slots
        return self._ids[start:stop, :rows], self._logprobs[start:stop, :rows]

    def compact(self, source: Tensor, length: int) -> None:
        """Goes on with fewer slots a prompt.

        Args:
            source: for each prompt and new slot, the slot it comes from [P, fewer]; a slot that nobody needs may hold anybody.
            length: steps that have been fed.
        """
        prompts, before, after = self.shape.prompts, self.slots, source.shape[1]
        rows = (torch.arange(prompts, device=source.device).unsqueeze(1) * before + source).view(-1)
        for static in self._caches:
            static.move(source, before, after, length)
        for state in (self._token, self._position, self._finished, self._chance.t()):
            state[: len(rows)] = state[rows]
        self.slots = after

    # ── a step ───────────────────────────────────────────────────────────────────────────────────────────────────────────
    def _advance(self, slots: int, window: int, forbid_eos: bool) -> None:
        rows = self.shape.prompts * slots
        self._hidden_own.zero_().masked_fill_(self._places > self._step, -torch.inf)
        turns = self._rotation.at(self._position[:rows])
        attentions = self._attentions_of(slots, window)
        logits = self._forward(self._token[:rows], turns.view(self.shape.prompts, slots, 1, *turns.shape[1:]), attentions)
        self._step.add_(1)
        uniform = self._chance if self.shape.params.greedy else self._chance.index_select(0, self._step).squeeze(0)[:rows]
        self._take(*self._draw(logits, uniform, forbid_eos=forbid_eos))
        self._position[:rows].add_(1)

    def _take(self, token: Tensor, logprob: Tensor) -> None:
        rows = len(token)
        self._token[:rows] = token
        self._finished[:rows] |= (token.unsqueeze(1) == self._eos).any(dim=1)
        self._ids[:, :rows].index_copy_(0, self._step, token.unsqueeze(0))
        self._logprobs[:, :rows].index_copy_(0, self._step, logprob.unsqueeze(0))

    def _attentions_of(self, slots: int, window: int) -> list[StaticAttention]:
        if (slots, window) not in self._attentions:
            hidden = Hidden(self._hidden_prompt, self._hidden_own[:, :, :window])
            self._attentions[slots, window] = [
                StaticAttention(
                    cache,
                    slots,
                    window,
                    queries=self._forward.queries,
                    rotation=self._rotation,
                    scaling=self._forward.scaling,
                    step=self._step,
                    hidden=hidden,
                )
                for cache in self._caches
            ]
        return self._attentions[slots, window]

    def _recorded(self, slots: int, window: int, forbid_eos: bool) -> torch.cuda.CUDAGraph | None:
        """The step as a graph; None, with a word in the log, where the device refuses (too little memory for a second set of temporaries)."""
        try:
            graph = torch.cuda.CUDAGraph()
            # Only this thread is held to the rules of capturing: NCCL's watchdog asks for events from its own.
            with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
                self._advance(slots, window, forbid_eos)
        except RuntimeError as error:
            reason = str(error).partition("\n")[0]
            logger.warning("a step of %d slots could not be recorded as a graph and is taken operation by operation: %s", slots, reason)
            return None
        self._pool = graph.pool()  # graphs never run at the same time, so their temporary memory may be the same
        return graph
