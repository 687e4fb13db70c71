"""Generation by all ranks of a peer: prompts are divided, sampled, and gathered again in their order.

Invariant: the samples are a function of seeds, prompts, weights and the number of ranks. They depend neither on
earlier calls nor on how many rollouts fit into the device's memory at once.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from typing import Any

import msgpack
import torch

from swarmgame.errors import Temporary
from swarmgame.game.ranks import Ranks
from swarmgame.inference.sampler import Sampled, Sampler, SamplingParams

logger = logging.getLogger(__name__)


class Generation:
    """Samples on this rank, in batches for which the device has memory.

    Args:
        rollouts_per_batch: at most this many completions at once (but always at least one prompt's).
    """

    def __init__(self, sampler: Sampler, ranks: Ranks, *, rollouts_per_batch: int) -> None:
        self.sampler = sampler
        self.rollouts_per_batch = rollouts_per_batch
        self._ranks = ranks

    def __call__(
        self, prompts: Sequence[tuple[int, ...]], n: int, params: SamplingParams, *, seed: int
    ) -> list[list[Sampled]]:
        """Return `n` completions of each prompt, in the order of the prompts, on every rank.

        Args:
            seed: of this rank; ranks must differ.

        Raises:
            Temporary: the device has no memory for the completions of a single prompt.
        """
        return self.gather(self.own_share(prompts, n, params, seed=seed), len(prompts))

    def own_share(
        self, prompts: Sequence[tuple[int, ...]], n: int, params: SamplingParams, *, seed: int
    ) -> list[list[Sampled]]:
        """Sample this rank's share of the prompts; no other rank is waited for. See `__call__`."""
        own = prompts[self._ranks.rank :: self._ranks.size]
        groups: list[list[Sampled]] = []
        while len(groups) < len(own):
            groups += self._batch(own[len(groups) :], n, params, seed, first_row=len(groups) * n)
        return groups

    def turn(
        self, prompts: Sequence[tuple[int, ...]], n: int, params: SamplingParams, *, seed: int, budgets: Sequence[int]
    ) -> list[Sampled]:
        """Sample `n` completions of each prompt on this rank, one prompt after the other; no other rank is waited for.

        Args:
            budgets: tokens of each completion, at most `params.max_new_tokens`.
        """
        groups: list[list[Sampled]] = []
        while (made := len(groups)) < len(prompts):
            groups += self._batch(prompts[made:], n, params, seed, first_row=made * n, budgets=budgets[made:])
        return [sampled for group in groups for sampled in group]

    def gather(self, groups: list[list[Sampled]], prompts: int) -> list[list[Sampled]]:
        """Return the completions of all ranks, in the order of that many prompts; every rank calls it with its own
        share.
        """
        ranks = self._ranks
        if ranks.size == 1:
            return groups
        dealt = [unpack(payload) for payload in ranks.gather(pack(groups))]
        return [dealt[index % ranks.size][index // ranks.size] for index in range(prompts)]

    def _batch(
        self,
        prompts: Sequence[tuple[int, ...]],
        n: int,
        params: SamplingParams,
        seed: int,
        *,
        first_row: int,
        budgets: Sequence[int] | None = None,
    ) -> list[list[Sampled]]:
        """Sample as many of the first prompts as fit into memory, in batches of one size where possible: a sampler
        keeps what it made for one size.

        When memory runs out, the sampler first releases what it holds; then fewer rollouts are sampled at once, then
        fewer prompts in one call.
        """
        most_prompts, has_released = len(prompts), False
        while True:
            allowed = self.sampler.limit(self.rollouts_per_batch)
            batches = math.ceil(len(prompts) / max(1, min(allowed // n, most_prompts)))
            batch = prompts[: math.ceil(len(prompts) / batches)]
            try:
                allowed_tokens = None if budgets is None else budgets[: len(batch)]
                return self.sampler.sample(batch, n, params, seed, first_row=first_row, budgets=allowed_tokens)
            except torch.cuda.OutOfMemoryError as error:
                at_once = min(self.rollouts_per_batch, len(batch) * n)
                # A sampler that lets rows wait can hold fewer than one prompt's.
                divisible = at_once > 1 and (len(batch) > 1 or allowed > self.rollouts_per_batch)
                if self.sampler.release() and not has_released:
                    has_released = True
                elif divisible:
                    self.rollouts_per_batch, has_released = at_once // 2, False
                    logger.warning(
                        "out of memory while sampling: at most %d rollouts at once from now on", self.rollouts_per_batch
                    )
                elif len(batch) > 1:
                    most_prompts, has_released = len(batch) // 2, False
                    logger.warning("out of memory while sampling: %d prompts at once", most_prompts)
                else:
                    raise Temporary(
                        f"the device has no memory for {n} rollouts of {params.max_new_tokens} tokens of one prompt: "
                        "lower generations or "
                        "maxNewTokens, or use a device with more memory"
                    ) from error
            torch.cuda.empty_cache()


def pack(groups: list[list[Sampled]]) -> bytes:
    """Encode completions; `unpack` gives back equal ones, log-probabilities to the last bit."""
    plain = [[(sampled.token_ids, sampled.logprobs, sampled.stopped) for sampled in group] for group in groups]
    packed: bytes = msgpack.packb(plain)
    return packed


def unpack(payload: bytes) -> list[list[Sampled]]:
    """Decode what `pack` made."""
    plain: Any = msgpack.unpackb(payload)
    return [[Sampled(tuple(ids), tuple(logprobs), stopped) for ids, logprobs, stopped in group] for group in plain]
