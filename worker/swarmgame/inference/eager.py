"""A sampler for any causal language model of transformers, on any device, without compilation.

Each prompt is read once, whatever the number of completions, and its cache repeated; all rows advance together,
left-padded, with explicit positions; rows that have finished leave the batch when less than three quarters are alive.
Invariant: see `sampler.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from swarmgame.inference.cache import is_windowed
from swarmgame.inference.decoder import SharedPromptDecoder
from swarmgame.inference.llama import is_supported
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
        written_out: take decode steps with `SharedPromptDecoder` where the model is supported; otherwise always with
            the model's own forward.
    """

    def __init__(
        self, model: Any, eos_token_ids: Sequence[int], pad_token_id: int, *, written_out: bool = True
    ) -> None:
        super().__init__(model, eos_token_ids, pad_token_id)
        self.written_out = written_out

    def _rollout(
        self,
        prompts: Sequence[Sequence[int]],
        n: int,
        params: SamplingParams,
        uniforms_RT: Tensor,
        budgets: Sequence[int],
    ) -> tuple[Tensor, Tensor]:
        device = self.model.device
        rows, width = len(prompts) * n, max(len(prompt) for prompt in prompts)
        steps = max(budgets)
        uniforms_TR = uniforms_RT.t().contiguous().to(device)
        sample_token = TokenSampler(params, self.eos_token_ids)
        # Where all rows have the same budget the loop ends at it, and no row needs to be checked.
        last = torch.tensor(budgets, device=device) - 1 if min(budgets) < steps else None
        eos = torch.tensor(self.eos_token_ids, device=device)
        ids = torch.full(
            (steps, rows), self.eos_token_ids[0] if self.eos_token_ids else self.pad_token_id, device=device
        )
        logprobs = torch.zeros(steps, rows, device=device)

        read = prefill(self.model, prompts, width, self.pad_token_id, room=steps)
        logits, cache, mask = read.logits.repeat_interleave(n, dim=0), read.cache, read.mask
        decoder = seen = None
        if self.written_out and is_supported(self.model):
            decoder = SharedPromptDecoder(self.model, cache, mask, n, steps, width + steps)
        else:
            cache.batch_repeat_interleave(n)
            seen = _DecodeMask(self.model, mask.repeat_interleave(n, dim=0), width, steps) if mask is not None else None
        positions = read.positions.repeat_interleave(n, dim=0)
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
                        if decoder is not None:
                            decoder.select(keep)
                        else:
                            cache.batch_select_indices(keep)
                        if seen is not None:
                            seen.select(keep)
            if decoder is not None:
                logits = decoder(token, positions)
            else:
                outputs = self.model(
                    input_ids=token.unsqueeze(1),
                    attention_mask=None if seen is None else seen.at(step),
                    position_ids=positions.unsqueeze(1),
                    past_key_values=cache,
                    use_cache=True,
                )
                logits = outputs.logits[:, -1]
            positions = positions + 1
        return ids.t(), logprobs.t()


class _DecodeMask:
    """What each row may attend to while it decodes, made once for all steps.

    A mask of four dimensions is passed through by transformers as it is, which saves building one from two dimensions
    at every step; models with windows or other kernels still get the two-dimensional one.
    """

    def __init__(self, model: Any, mask_BW: Tensor, width: int, steps: int) -> None:
        mask_BS = torch.cat([mask_BW, mask_BW.new_ones(len(mask_BW), steps)], dim=1)
        windowed = is_windowed(model.config)
        implementation = model.config.get_text_config()._attn_implementation
        self._width = width
        self._mask = mask_BS
        if not windowed and implementation in ("sdpa", "eager"):
            lowest = torch.finfo(model.dtype).min
            self._mask = torch.zeros(mask_BS.shape, dtype=model.dtype, device=mask_BS.device).masked_fill(
                ~mask_BS, lowest
            )[:, None, None, :]

    def select(self, rows: Tensor) -> None:
        self._mask = self._mask[rows]

    def at(self, step: int) -> Tensor:
        """The mask for the token drawn at `step`, which attends to itself and all before it."""
        return self._mask[..., : self._width + step + 1]
