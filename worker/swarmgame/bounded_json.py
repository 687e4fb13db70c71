"""JSON of others, whose depth is bounded before it is parsed.

The parser of Python recurses into lists and objects. A library may raise the process's recursion limit so far that a
deep text ends the process before the limit raises an error, so what others wrote is not left to that limit.
"""

from __future__ import annotations

import json
import re
from itertools import accumulate
from typing import Any

DEEPEST = 100
"""How deep lists and objects may be nested."""
_STRING = re.compile(r'"(?:[^"\\]++|\\.)*+"?', re.DOTALL)
"""A string, also one without an end, so that a search takes time proportional to the text."""
_CHANGES = {"[": 1, "{": 1, "]": -1, "}": -1}
_BRACKET = re.compile(r"[\[{\]}]")


def loads(text: str | bytes, *, deepest: int = DEEPEST, **options: Any) -> Any:
    """Parse JSON.

    Args:
        text: bytes are UTF-8.
        options: of `json.loads`.

    Raises:
        ValueError: it is no JSON, not in UTF-8, or nested deeper than that.
    """
    plain = text.decode() if isinstance(text, bytes) else text
    check_depth(plain, deepest)
    return json.loads(plain, **options)


def check_depth(text: str, deepest: int = DEEPEST) -> None:
    """Raise ValueError where lists and objects are nested deeper than that. Takes time proportional to the text."""
    if text.count("[") + text.count("{") <= deepest:
        return
    brackets = _BRACKET.findall(_STRING.sub("", text))
    if max(accumulate(map(_CHANGES.__getitem__, brackets)), default=0) > deepest:
        raise ValueError(f"lists and objects are nested more than {deepest} deep")
