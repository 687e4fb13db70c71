"""Logits at some positions of a forward pass, without those of all others."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def scored_logits(
    model: Any, row_N: Tensor, column_N: Tensor, *, states: list[Tensor] | None = None, **inputs: Any
) -> Tensor:
    """Return logits [N, V] at the given positions of a forward pass.

    The head is handed the hidden states of those positions only, whatever the shape of the rest: `logits_to_keep`
    could but cut one range for all rows. Scaling and capping of logits, where a model has them, still happen in its
    own forward.

    Args:
        states: the hidden states [N, H] of these positions are added to it, with gradient; only for a model whose head
            is known.
    """
    head, picked_rows = model.get_output_embeddings(), []

    def pick(_: torch.nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
        picked_rows.append(True)
        hidden_NH = arguments[0][row_N, column_N]
        if states is not None:
            states.append(hidden_NH)
        return (hidden_NH.unsqueeze(0), *arguments[1:])

    handle = head.register_forward_pre_hook(pick) if head is not None else None
    try:
        logits = model(**inputs).logits
    finally:
        if handle is not None:
            handle.remove()
    picked: Tensor = logits.squeeze(0) if picked_rows else logits[row_N, column_N]
    return picked
