"""The rewards: 1 for the right answer, and up to 0.5 for one that is right in part.

The manifest names the function as `rewards:partly_right`. It is called in the sandbox, for the rollouts of all peers.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def partly_right(question: Mapping[str, Any], text: str) -> float:
    """Return the reward of an answer. The text is untrusted: compare it, never evaluate it."""
    right, given = question["answer"], text.strip()
    if given == right:
        return 1.0
    same = sum(a == b for a, b in zip(right, given, strict=False))
    return 0.5 * same / max(len(right), len(given))
