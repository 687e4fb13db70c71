"""Prompts, read once by the model's own forward, before anything is drawn.

Left-padded to one width, with explicit positions. Invariant: each prompt's keys, values and logits are those it would
have alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache

from swarmgame.inference.arguments import Arguments
from swarmgame.inference.cache import decoding_cache


@dataclass(frozen=True)
class Prefilled:
    """What the prompts left behind.

    Args:
        logits: of the first token [P, V].
        cache: keys and values, one row a prompt.
        mask: which positions are real [P, W]; None when all are.
        positions: where the first token stands [P].
        arguments: of the model's forward.
    """

    logits: Tensor
    cache: Cache
    mask: Tensor | None
    positions: Tensor
    arguments: Arguments


def prefill(model: Any, prompts: Sequence[Sequence[int]], width: int, pad_token_id: int, *, room: int = 0) -> Prefilled:
    """Reads all prompts.

    Args:
        width: W, at least the longest prompt.
        pad_token_id: any valid id; never attended to.
        room: positions that the cache will need beyond the prompts, where it grows by itself.
    """
    device = model.device
    lengths = torch.tensor([len(prompt) for prompt in prompts])
    ids = torch.tensor([[pad_token_id] * (width - len(prompt)) + list(prompt) for prompt in prompts], device=device)
    arguments = Arguments(model)
    mask = (torch.arange(width) >= (width - lengths).unsqueeze(1)).to(device) if int(lengths.min()) < width else None
    positions = (torch.arange(width) - (width - lengths).unsqueeze(1)).clamp(min=0).to(device)
    cache = decoding_cache(model.config, width + room)
    more: dict[str, Any] = {"logits_to_keep": 1} if "logits_to_keep" in arguments else {}
    given = arguments.cached(mask=None if mask is None else mask.long(), positions=positions, cache=cache)
    outputs = model(input_ids=ids, **given, **more)
    return Prefilled(outputs.logits[:, -1], cache, mask, lengths.to(device), arguments)
