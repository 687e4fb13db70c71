"""Messages as JSON, as peers submit them to a gateway.

The bytes are untrusted: sizes and ranges are checked before anything is computed. Binary fields are 0x and hexadecimal
digits; integers may exceed 2^53, since both sides keep them exact. `parse` reverses `dump`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pydantic import ValidationError
from pydantic_core import from_json

from swarmgame_chain.errors import BadMessage
from swarmgame_chain.messages import MessageKind, SignedMessage

MAX_BODY = 1 << 20
MAX_MESSAGES = 256


def dump(message: SignedMessage) -> dict[str, Any]:
    """Return a message as JSON types."""
    fields: dict[str, object] = type(message).__dict__["__dataclass_fields__"]
    return {name: _json(getattr(message, name)) for name in fields}


def parse(kind: MessageKind, body: bytes) -> Sequence[SignedMessage | BadMessage]:
    """Return one message, or the messages of a list of at most 256; an invalid one is the error with the reason.

    Raises:
        BadMessage: the body is not JSON, or too large, or too long a list.
    """
    if len(body) > MAX_BODY:
        raise BadMessage(f"the body has {len(body)} bytes; expected at most {MAX_BODY}")
    try:
        # Not json.loads: its nesting depth is bounded by the interpreter's recursion limit only, which libraries raise
        # until it crashes.
        loaded = from_json(body, allow_inf_nan=False)
    except ValueError as error:
        raise BadMessage("the body is no JSON") from error
    entries = loaded if isinstance(loaded, list) else [loaded]
    if not 0 < len(entries) <= MAX_MESSAGES:
        raise BadMessage(f"the body holds {len(entries)} messages; expected 1 to {MAX_MESSAGES}")
    return [_parse(kind, entry) for entry in entries]


def _parse(kind: MessageKind, entry: object) -> SignedMessage | BadMessage:
    try:
        return kind.validate(entry)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(map(str, first["loc"])) or "the message"
        return BadMessage(f"{where}: {first['msg']}")


def _json(value: object) -> object:
    return "0x" + value.hex() if isinstance(value, bytes) else list(value) if isinstance(value, tuple) else value
