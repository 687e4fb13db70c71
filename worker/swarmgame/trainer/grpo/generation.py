"""Generation by all ranks of a peer: prompts are dealt out, sampled, and gathered again in their order.

Invariant: what is sampled is a function of seeds, prompts, weights and the number of ranks, never of what the process did before.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgpack
import torch

from swarmgame.game.ranks import Ranks
from swarmgame.trainer.grpo.sampler import Sampled, Sampler, SamplingParams


def generate_on_ranks(
    sampler: Sampler,
    prompts: Sequence[tuple[int, ...]],
    n: int,
    params: SamplingParams,
    *,
    seed: int,
    ranks: Ranks,
    rollouts_per_batch: int,
    device: str,
) -> list[list[Sampled]]:
    """`n` completions of each prompt, in the order of the prompts, on every rank.

    Args:
        seed: of this rank; ranks must differ.
        rollouts_per_batch: at most this many completions at once (but always at least one prompt's).
    """
    generator = torch.Generator(device=device).manual_seed(seed)
    own = prompts[ranks.rank :: ranks.size]
    step = max(1, rollouts_per_batch // n)
    groups: list[list[Sampled]] = []
    for start in range(0, len(own), step):
        groups += sampler.sample(own[start : start + step], n, params, generator)
    if ranks.size == 1:
        return groups
    dealt = [_unpacked(payload) for payload in ranks.gather(_packed(groups))]
    return [dealt[index % ranks.size][index // ranks.size] for index in range(len(prompts))]


def _packed(groups: list[list[Sampled]]) -> bytes:
    plain = [[(sampled.token_ids, sampled.logprobs, sampled.stopped) for sampled in group] for group in groups]
    packed: bytes = msgpack.packb(plain)
    return packed


def _unpacked(payload: bytes) -> list[list[Sampled]]:
    plain: Any = msgpack.unpackb(payload)
    return [[Sampled(tuple(ids), tuple(logprobs), stopped) for ids, logprobs, stopped in group] for group in plain]
