"""A sampler for CUDA devices: prompts are read by the model's own forward, and every step after that is a CUDA graph.

Shapes come in buckets, so that graphs are met again: widths of prompts are padded to multiples of 64 and more, slots a prompt are halved when no
prompt needs more than half of them. Memory and graphs of the last shapes are kept between calls, until `release`. What a graph cannot do, for
a model that is not written out, is left to `sampler_eager.py`. Invariant: see `sampler.py`.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from swarmgame.trainer.grpo.forward import knows
from swarmgame.trainer.grpo.prefill import prefill
from swarmgame.trainer.grpo.sampler import ModelSampler, SamplingParams, uniforms
from swarmgame.trainer.grpo.sampler_eager import SYNC_EVERY, EagerSampler
from swarmgame.trainer.grpo.static_decoder import Shape, StaticDecoder

KEPT = 4
"""Shapes whose memory and graphs are kept: training and evaluation, and for each a second one (a stage with longer prompts, an uneven batch)."""


class CudaGraphSampler(ModelSampler):
    """Samples with graphs."""

    def __init__(self, model: Any, eos_token_ids: Sequence[int], pad_token_id: int) -> None:
        super().__init__(model, eos_token_ids, pad_token_id)
        self._eager = EagerSampler(model, eos_token_ids, pad_token_id)
        self._decoders: OrderedDict[Shape, StaticDecoder] = OrderedDict()
        self._weights: tuple[int, ...] = ()

    def release(self) -> bool:
        """Gives the memory of all shapes back; they are made anew when they are needed. Returns whether there was any."""
        held = bool(self._decoders)
        self._decoders.clear()
        return held

    def _rollout(
        self, prompts: Sequence[Sequence[int]], n: int, params: SamplingParams, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        if not knows(self.model):
            return self._eager._rollout(prompts, n, params, generator)
        device, steps, rows = self.model.device, params.max_new_tokens, len(prompts) * n
        width = bucket(max(len(prompt) for prompt in prompts))
        decoder = self._decoder(Shape(len(prompts), n, width, params))
        decoder.begin(prefill(self.model, prompts, width, self.pad_token_id), uniforms(rows, params, generator, device))
        ids = torch.full((steps, rows), self.eos_token_ids[0] if self.eos_token_ids else self.pad_token_id, device=device)
        logprobs = torch.zeros(steps, rows, device=device)
        holder = torch.arange(rows, device=device)  # the row that each slot belongs to
        taken = 0
        for step in range(steps - 1):
            if step % SYNC_EVERY == SYNC_EVERY - 1 and step + 1 > params.min_new_tokens:
                finished = decoder.finished
                needed = int((~finished).sum(dim=1).max())
                if needed == 0:
                    steps = step + 1
                    break
                fewer = decoder.slots
                while needed <= fewer // 2:
                    fewer -= fewer // 2
                if fewer < decoder.slots:
                    _put(ids, logprobs, decoder, holder, taken, step + 1)
                    taken = step + 1
                    # Rows that go on come first; a stable order keeps them as they were.
                    source = finished.to(torch.uint8).argsort(dim=1, stable=True)[:, :fewer]
                    holder = holder.view(len(prompts), -1).gather(1, source).view(-1)
                    decoder.compact(source, step)
            decoder.advance(step)
        _put(ids, logprobs, decoder, holder, taken, steps)
        return ids.t(), logprobs.t()

    def _decoder(self, shape: Shape) -> StaticDecoder:
        """The shape's memory and graphs; all are dropped when the weights have been put elsewhere, where no graph would find them."""
        weights = tuple(parameter.data_ptr() for parameter in self.model.parameters())
        if weights != self._weights:
            self.release()
            self._weights = weights
        decoder = self._decoders.pop(shape, None)
        if decoder is None:
            while len(self._decoders) >= KEPT:
                self._decoders.popitem(last=False)
            decoder = StaticDecoder(self.model, shape, self.eos_token_ids, capture=self.model.device.type == "cuda")
        self._decoders[shape] = decoder
        return decoder


def bucket(width: int) -> int:
    """The width to which prompts are padded: a multiple of 64, of 128 above 512, of 256 above 1,024, and so on; at most an eighth too much."""
    unit = 64
    while unit * 8 < width:
        unit *= 2
    return -(-width // unit) * unit


def _put(ids: Tensor, logprobs: Tensor, decoder: StaticDecoder, holder: Tensor, start: int, stop: int) -> None:
    """Copies what the slots have drawn to the rows that they belong to. A finished row is held by nobody after compaction, or draws on
    behind its EOS, which `cut` drops."""
    drawn_ids, drawn_logprobs = decoder.drawn(start, stop)
    ids[start:stop, holder], logprobs[start:stop, holder] = drawn_ids, drawn_logprobs
