"""A sampler for any causal language model of transformers, on any device, without compilation.

Each prompt is read once, whatever the number of completions, and its cache repeated; all rows advance together,
left-padded, with explicit positions; rows that have finished leave the batch when less than three quarters are alive.
How steps are taken is one of `decoding.Decoding`. Invariant: see `sampler.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from swarmgame.inference.architecture import is_supported
from swarmgame.inference.decoder import SharedPromptDecoder
from swarmgame.inference.decoding import CachedDecoder, Decoder, Decoding, RecomputingDecoder
from swarmgame.inference.prefill import prefill
from swarmgame.inference.sampler import ModelSampler, SamplingParams
from swarmgame.inference.token_sampler import TokenSampler

COMPACT_BELOW = 0.75
"""Share of rows alive under which the finished ones are taken out: copying the cache must cost less than carrying
them.
"""

SYNC_EVERY = 16
"""On an accelerator, steps between two checks of which rows have finished: each check waits for the device."""


class EagerSampler(ModelSampler):
    """Samples operation by operation.

    Args:
        decoding: how steps are taken; None takes the quickest way.
    """

    def __init__(
        self, model: Any, eos_token_ids: Sequence[int], pad_token_id: int, *, decoding: Decoding | None = None
    ) -> None:
        super().__init__(model, eos_token_ids, pad_token_id)
        if decoding is not None:
            self.decoding = decoding

    @property
    def quickest(self) -> Decoding:
        """See `ModelSampler.quickest`."""
        return Decoding.FUSED if is_supported(self.model) else Decoding.CACHED

    def _rollout(
        self,
        prompts: Sequence[Sequence[int]],
        n: int,
        params: SamplingParams,
        uniforms_RT: Tensor,
        budgets: Sequence[int],
    ) -> tuple[Tensor, Tensor]:
        lengths = [len(prompt) for prompt in prompts]
        if self.decoding is not Decoding.UNPADDED or min(lengths) == max(lengths):
            return self._batch(prompts, n, params, uniforms_RT, budgets)
        ids = torch.zeros(len(budgets), max(budgets), dtype=torch.long, device=self.model.device)
        logprobs = torch.zeros(ids.shape, device=self.model.device)
        for length in sorted(set(lengths)):
            own = [index for index, each in enumerate(lengths) if each == length]
            rows = [index * n + sample for index in own for sample in range(n)]
            part = self._batch(
                [prompts[index] for index in own], n, params, uniforms_RT[rows], [budgets[row] for row in rows]
            )
            for whole, some in zip((ids, logprobs), part, strict=True):
                whole[rows, : some.shape[1]] = some
        return ids, logprobs

    def _batch(
        self,
        prompts: Sequence[Sequence[int]],
        n: int,
        params: SamplingParams,
        uniforms_RT: Tensor,
        budgets: Sequence[int],
    ) -> tuple[Tensor, Tensor]:
        """Sample rows that advance together; see `_rollout`."""
        device = self.model.device
        rows, steps = len(prompts) * n, max(budgets)
        uniforms_TR = uniforms_RT.t().contiguous().to(device)
        sample_token = TokenSampler(params, self.eos_token_ids)
        # Where all rows have the same budget the loop ends at it, and no row needs to be checked.
        last = torch.tensor(budgets, device=device) - 1 if min(budgets) < steps else None
        eos = torch.tensor(self.eos_token_ids, device=device)
        ids = torch.full(
            (steps, rows), self.eos_token_ids[0] if self.eos_token_ids else self.pad_token_id, device=device
        )
        logprobs = torch.zeros(steps, rows, device=device)

        logits, positions, decoder = self._read(prompts, n, steps)
        alive = torch.arange(rows, device=device)
        finished = torch.zeros(rows, dtype=torch.bool, device=device)
        every = 1 if device.type == "cpu" else SYNC_EVERY
        for step in range(steps):
            complete = len(alive) == rows
            uniform = uniforms_TR if params.greedy else uniforms_TR[step] if complete else uniforms_TR[step, alive]
            token, logprob = sample_token(logits, uniform, forbid_eos=step < params.min_new_tokens)
            if complete:
                ids[step], logprobs[step] = token, logprob
            else:
                ids[step, alive], logprobs[step, alive] = token, logprob
            if step + 1 == steps:
                break
            if last is not None:
                finished |= last <= step
            if step + 1 > params.min_new_tokens or last is not None:
                finished |= torch.isin(token, eos)
                if (step + 1) % every == 0:
                    left = int((~finished).sum())
                    if left == 0:
                        break
                    if left < COMPACT_BELOW * len(alive):
                        keep = (~finished).nonzero().squeeze(1)
                        alive, token, positions, finished = alive[keep], token[keep], positions[keep], finished[keep]
                        last = None if last is None else last[keep]
                        decoder.select(keep)
            logits = decoder(token, positions)
            positions = positions + 1
        return ids.t(), logprobs.t()

    def _read(self, prompts: Sequence[Sequence[int]], n: int, steps: int) -> tuple[Tensor, Tensor, Decoder]:
        """Read the prompts; return the logits of all first tokens [R, V], their positions [R], and what decodes."""
        if self.decoding is Decoding.RECOMPUTED:
            recomputing = RecomputingDecoder(self.model, prompts, n, steps, self.pad_token_id)
            positions = torch.tensor([len(prompt) for prompt in prompts], device=self.model.device)
            return recomputing.first_logits.repeat_interleave(n, dim=0), positions.repeat_interleave(n), recomputing
        width = max(map(len, prompts))
        read = prefill(self.model, prompts, width, self.pad_token_id, room=steps)
        decoder: Decoder
        if self.decoding is Decoding.FUSED and is_supported(self.model):
            decoder = SharedPromptDecoder(self.model, read.cache, read.mask, n, steps, width + steps)
        else:
            plain = self.decoding is Decoding.PLAIN_MASK
            decoder = CachedDecoder(self.model, read, n, steps, plain_mask=plain)
        return read.logits.repeat_interleave(n, dim=0), read.positions.repeat_interleave(n), decoder
