"""Cells of a table: the text of one, and the conversation that one may hold.

Text, numbers, booleans and dates are texts; a question may also be a list of messages, as chat templates take them.
Anything else (null, NaN, bytes, lists, objects) is refused with what it is: Python's notation of it would be asked, or
compared with an answer. The caller adds row and column.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from datetime import date, datetime, time
from decimal import Decimal
from numbers import Real
from typing import Any, TypeGuard

from swarmgame.errors import BadData
from swarmgame.game.state import Message

ROLES = ("system", "user", "assistant")
_WRITTEN_MESSAGES = re.compile(r"""\s*\[\s*\{\s*['"](?:role|content)['"]\s*:""")


class CellProblem(BadData):
    """A cell that cannot be used: what it is, and what was expected."""


def text_of_cell(value: object) -> str:
    """Return a cell as text: a number as Python writes it, `True` or `False`, a date in ISO 8601.

    Raises:
        CellProblem: it is none of these.
    """
    if isinstance(value, str):
        if not value.isascii():
            _check_unicode(value)
        return value
    if isinstance(value, int) or _is_finite(value):
        return str(value)
    if isinstance(value, datetime | date | time):
        return value.isoformat()
    raise CellProblem(f"{kind_of_cell(value)}; expected text or a number")


def messages_of_cell(value: Sequence[Any]) -> tuple[Message, ...]:
    """Return a list of `{"role": …, "content": …}` as messages.

    Raises:
        CellProblem: an element is no message, a system message is not the first, or the last is not the user's.
    """
    messages = tuple(_message(position, each) for position, each in enumerate(value))
    if not messages or messages[-1].role != "user":
        last = messages[-1].role if messages else "no message"
        raise CellProblem(f"a conversation that ends with {last}; expected one that ends with a message of the user")
    if not messages[-1].content.strip():
        raise CellProblem("a conversation whose last message is empty; expected a question")
    return messages


def is_conversation(value: object) -> TypeGuard[Sequence[Any]]:
    """Return whether a cell is a list, which `messages_of_cell` can read or refuse."""
    return isinstance(value, Sequence) and not isinstance(value, str | bytes | bytearray)


def question_of_cell(value: object) -> str:
    """Return the question in a cell: its text, or the last message of its conversation.

    Raises:
        CellProblem: it is neither, or it is empty.
    """
    if is_conversation(value):
        return messages_of_cell(value)[-1].content
    text = text_of_cell(value)
    if not text.strip():
        raise CellProblem("an empty text; expected a question")
    if _WRITTEN_MESSAGES.match(text):
        raise CellProblem(
            "a list of messages, written as text; expected a list: use JSON lines or Parquet, or a column of text"
        )
    return text


def kind_of_cell(value: object) -> str:
    """Return what a cell is, in words."""
    if value is None:
        return "null"
    if isinstance(value, float):
        return str(value)
    if isinstance(value, bytes | bytearray):
        return "bytes, not text"
    if isinstance(value, Mapping):
        return f"an object with the keys {', '.join(map(str, list(value)[:8])) or '(none)'}"
    if isinstance(value, Sequence):
        return f"a list of {len(value)}"
    return f"a value of the type {type(value).__name__}"


def _is_finite(value: object) -> bool:
    """Return whether a value is a number, and finite; one beyond the range of floats is."""
    if isinstance(value, Decimal):
        return value.is_finite()
    try:
        return isinstance(value, Real) and math.isfinite(value)
    except OverflowError:
        return True


def _message(position: int, value: object) -> Message:
    place = f"a list whose element {position}"
    if not isinstance(value, Mapping):
        raise CellProblem(f"{place} is {_indefinite(value)}; expected messages, objects with role and content")
    role, content = value.get("role"), value.get("content")
    if role not in ROLES or (role == "system" and position > 0):
        raise CellProblem(
            f"{place} has the role {role!r}; expected one of {', '.join(ROLES)}, and system only for the first"
        )
    if not isinstance(content, str):
        raise CellProblem(f"{place} has the content {kind_of_cell(content)}; expected text")
    _check_unicode(content)
    more = [str(key) for key, each in value.items() if key not in ("role", "content") and each is not None]
    if more:
        raise CellProblem(f"{place} also has {', '.join(more)}; expected role and content only")
    return Message(role, content)


def _indefinite(value: object) -> str:
    return "text" if isinstance(value, str) else kind_of_cell(value)


def _check_unicode(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise CellProblem(
            f"text with half of a surrogate pair (\\u{ord(text[error.start]):04x}); expected Unicode"
        ) from None
