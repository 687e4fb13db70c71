"""The forward pass of training where several completions answer one prompt: each prompt is read once, with gradient.

A first pass reads the distinct prompts and keeps their keys and values in the graph; a second reads the completions,
each behind its own prompt's. The numbers are those of the plain pass, which reads the prompt again for every
completion. For 4 prompts of 530 tokens with 4 completions of 64 each, a forward and backward take a third of the time.
It is not used where a cache is not kept (gradient checkpointing), not complete (windows), or where an attention kernel
allows no gap between prompt and completion; and, by the check at load (`parity`), for models that count columns instead
of reading positions.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from swarmgame.inference.cache import is_windowed
from swarmgame.inference.scored_logits import scored_logits
from swarmgame.models.noise import computes_twice

WORTHWHILE = 0.85
"""The share of the plain pass's tokens, below which two passes are quicker than one."""


def is_worthwhile(model: Any, prompts: Sequence[Sequence[int]], completions: Sequence[Sequence[int]]) -> bool:
    """Return whether enough rows share prompts, and the model can read a prompt first and a completion later."""
    if min(map(len, prompts)) < 2:
        return False
    longest_prompt, longest_completion = max(map(len, prompts)), max(map(len, completions))
    distinct = len({tuple(prompt) for prompt in prompts})
    shared = distinct * longest_prompt + len(prompts) * longest_completion
    tokens = len(prompts) * (longest_prompt + longest_completion)
    return shared <= WORTHWHILE * tokens and can_share(model)


def can_share(model: Any) -> bool:
    """Return whether nothing that is known of the model forbids to read a prompt first and a completion later."""
    attention = getattr(model.config.get_text_config(), "_attn_implementation", None)
    return not is_windowed(model.config) and attention in ("sdpa", "eager") and not computes_twice(model)


def shared_logits(
    model: Any,
    prompts: Sequence[Sequence[int]],
    completions: Sequence[Sequence[int]],
    row_N: Tensor,
    place_N: Tensor,
    pad_token_id: int,
    states: list[Tensor] | None = None,
) -> Tensor:
    """Logits [N, V] that predict token `place_N` of completion `row_N`, as `scored_logits` on the complete rows would
    give them.

    Args:
        states: as of `scored_logits`.
    """
    device = row_N.device
    distinct = {tuple(prompt): None for prompt in prompts}
    number = {prompt: index for index, prompt in enumerate(distinct)}
    owner_B = torch.tensor([number[tuple(prompt)] for prompt in prompts]).to(device)
    # A prompt's last token is read with the completion: it predicts the first token of it.
    length_U = torch.tensor([len(prompt) - 1 for prompt in distinct]).to(device)
    prompt_UP = _padded([prompt[:-1] for prompt in distinct], pad_token_id).to(device)
    cache = DynamicCache(config=model.config)
    nowhere = row_N[:0]
    scored_logits(
        model,
        nowhere,
        nowhere,
        input_ids=prompt_UP,
        position_ids=_places(prompt_UP),
        past_key_values=cache,
        use_cache=True,
    )
    for layer in cache.layers:
        layer.keys, layer.values = layer.keys.index_select(0, owner_B), layer.values.index_select(0, owner_B)
    rows = [[prompt[-1], *completion[:-1]] for prompt, completion in zip(prompts, completions, strict=True)]
    input_BT = _padded(rows, pad_token_id).to(device)
    start_B1 = length_U[owner_B].unsqueeze(1)
    read_BP = torch.arange(prompt_UP.shape[1], device=device) < start_B1
    return scored_logits(
        model,
        row_N,
        place_N,
        states=states,
        input_ids=input_BT,
        position_ids=start_B1 + _places(input_BT),
        attention_mask=torch.cat([read_BP, torch.ones_like(input_BT, dtype=torch.bool)], dim=1).long(),
        past_key_values=cache,
        use_cache=True,
    )


def _padded(rows: Sequence[Sequence[int]], pad_token_id: int) -> Tensor:
    width = max(map(len, rows))
    return torch.tensor([[*row, *[pad_token_id] * (width - len(row))] for row in rows])


def _places(like: Tensor) -> Tensor:
    return torch.arange(like.shape[1], device=like.device).unsqueeze(0).expand(like.shape[0], -1)
