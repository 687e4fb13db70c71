"""Frames: how the processes of the sandbox send JSON to each other over pipes.

A frame is four bytes of length, little-endian, then the body. `Result` is one call's result as JSON has it. A process
that evaluates an answer is untrusted: `checked` parses what it sent strictly.
"""

from __future__ import annotations

import os
import struct
from typing import Any

from swarmgame import bounded_json
from swarmgame.user_code import MAX_TEXT, MAX_TRACE, printable

MAX_FRAME = 64 * 2**20
MAX_RESULT = 4 * 2**20
MAX_DIGITS = 400
"""Most digits of a number in a result: a float has at most 309 before its point."""

Result = dict[str, Any]
TOO_LONG: Result = {"breach": "killed", "message": f"a result of more than {MAX_RESULT} bytes"}
_UNREADABLE: Result = {"breach": "killed", "message": "a result that cannot be read"}


def read_frame(descriptor: int) -> bytes | None:
    """Read a frame. None at the end of the stream.

    Raises:
        ValueError: it is longer than `MAX_FRAME`.
    """
    header = _read_exactly(descriptor, 4)
    if header is None:
        return None
    size = struct.unpack("<I", header)[0]
    if size > MAX_FRAME:
        raise ValueError(f"a frame of {size} bytes; at most {MAX_FRAME}")
    return _read_exactly(descriptor, size)


def write_frame(descriptor: int, body: bytes) -> None:
    """Write a frame completely."""
    view = memoryview(struct.pack("<I", len(body)) + body)
    while view:
        view = view[os.write(descriptor, view) :]


def first_frame(received: bytes | bytearray) -> bytes | None:
    """Return the body of the first frame of some received bytes; None while it is incomplete."""
    if len(received) < 4 or len(received) < 4 + (size := struct.unpack_from("<I", received)[0]):
        return None
    return bytes(received[4 : 4 + size])


def parsed(body: bytes) -> dict[str, Any]:
    """Parse an object of JSON, whose whole numbers are bounded; a breach where it is none."""
    try:
        found = bounded_json.loads(body, parse_int=_bounded)
        return found if isinstance(found, dict) else _UNREADABLE
    except ValueError:
        return _UNREADABLE


def checked(result: object) -> Result:
    """Return a parsed result with a value, or a breach with bounded texts, and nothing else."""
    try:
        if not isinstance(result, dict) or "breach" not in result:
            return {"value": result["value"]} if isinstance(result, dict) else _UNREADABLE
        found = {
            "breach": str(result["breach"])[:20],
            "message": printable(str(result.get("message", "")), MAX_TEXT),
        }
        return {**found, "error": _checked_error(result["error"])} if "error" in result else found
    except (ValueError, KeyError, TypeError, RecursionError):
        return _UNREADABLE


def _bounded(digits: str) -> int | float:
    """Return a whole number; infinity for one that no float can express."""
    if len(digits) > MAX_DIGITS:
        return float("-inf" if digits.startswith("-") else "inf")
    return int(digits)


def _checked_error(error: Any) -> list[str]:
    """Return class, message, place and traceback of an exception, as `CodeError` has them.

    Raises:
        ValueError: there are not four.
    """
    kind, message, where, trace = (str(part) for part in error)
    return [
        printable(kind, 100),
        printable(message, MAX_TEXT),
        printable(where, MAX_TEXT),
        printable(trace, MAX_TRACE, lines=True),
    ]


def _read_exactly(descriptor: int, size: int) -> bytes | None:
    chunks = []
    while size:
        chunk = os.read(descriptor, min(size, 1 << 20))
        if not chunk:
            return None
        chunks.append(chunk)
        size -= len(chunk)
    return b"".join(chunks)
