"""Limits of a model that its configuration states: how long a sequence may be, and how many ids it has.

Pure functions of a configuration. Where rotary embeddings change with the length of the longest sequence of a batch
(long RoPE, dynamic NTK), every number depends on what else is in the batch, and a cache is wrong once the length was
crossed; sequences therefore stay on the short side.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

_LENGTHS = ("max_position_embeddings", "max_seq_len", "max_sequence_length", "seq_length")
SMALLEST_PROMPT = 16
"""Tokens that must be left for a prompt: fewer hold no question."""


class Context(NamedTuple):
    """The longest sequence of a model.

    Args:
        tokens: prompt and completion together; None where the configuration states no limit.
        reason: why it is shorter than what the model was trained for; empty where it is not.
    """

    tokens: int | None
    reason: str = ""


def context_limit(config: Any) -> Context:
    """Return the longest sequence of a model of transformers."""
    text = config.get_text_config()
    stated = [int(value) for name in _LENGTHS if isinstance(value := getattr(text, name, None), int) and value > 0]
    tokens = min(stated, default=None)
    for rope in _ropes(getattr(text, "rope_parameters", None)):
        kind = rope.get("rope_type", "default")
        switch = rope.get("original_max_position_embeddings") or getattr(text, "original_max_position_embeddings", None)
        if kind == "longrope" and isinstance(switch, int) and (tokens is None or switch < tokens):
            reason = (
                f"its rotary embedding (long RoPE) has other factors for sequences of more than {switch} tokens, which "
                "would change those of all sequences of a batch"
            )
            tokens = switch
            return Context(tokens, reason)
    return Context(tokens)


def _ropes(parameters: Any) -> Iterator[Mapping[str, Any]]:
    """Return the parameters of each kind of rotary embedding: one, or one a kind of layer."""
    if not isinstance(parameters, Mapping):
        return
    if any(isinstance(value, Mapping) for value in parameters.values()):
        yield from (value for value in parameters.values() if isinstance(value, Mapping))
    else:
        yield parameters
