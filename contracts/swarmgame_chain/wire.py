"""Messages as JSON, the way peers hand them to a gateway.

Untrusted bytes come in here: sizes and ranges are checked before anything is computed. Binary fields are 0x and
hexadecimal digits; integers beyond 2^53 are safe, since both sides keep them whole. Invariant: `parse(dump(m)) == m`,
and what cannot be a message raises `BadMessage`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import from_json

from swarmgame_chain.errors import BadMessage
from swarmgame_chain.messages import MAX_PEER_ID, MAX_VOTES, Commit, Registration, Report, SignedMessage

MAX_BODY = 1 << 20
MAX_MESSAGES = 256
Kind = Literal["registrations", "commits", "reports"]


def _hex(*sizes: int) -> Callable[[str], str]:
    def check(text: str) -> str:
        if not text.startswith("0x") or (len(text) - 2) // 2 not in sizes or len(text) % 2:
            raise ValueError(f"expected 0x and {' or '.join(str(2 * size) for size in sizes)} hexadecimal digits")
        bytes.fromhex(text[2:])
        return text

    return check


Address = Annotated[str, Field(max_length=42), AfterValidator(_hex(20))]
Signature = Annotated[str, Field(max_length=514), AfterValidator(_hex(65, 256))]
SessionSignature = Annotated[str, Field(max_length=132), AfterValidator(_hex(65))]
Word = Annotated[str, Field(max_length=66), AfterValidator(_hex(32))]
Key = Annotated[str, Field(max_length=514), AfterValidator(_hex(64, 256))]
PeerName = Annotated[str, Field(min_length=1, max_length=MAX_PEER_ID, pattern=r"^[1-9A-HJ-NP-Za-km-z]+$")]
Round = Annotated[int, Field(ge=0, lt=2**32 - 1)]


class _Body(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)


class _Registration(_Body):
    owner: Address
    signer: Address
    deadline: Annotated[int, Field(ge=0, lt=2**64)]
    key: Key
    signature: Signature

    def message(self) -> Registration:
        return Registration(self.owner, self.signer, self.deadline, _bytes(self.key), _bytes(self.signature))


class _Commit(_Body):
    peer: PeerName
    round: Round
    seal: Word
    signature: SessionSignature

    def message(self) -> Commit:
        return Commit(self.peer, self.round, _bytes(self.seal), _bytes(self.signature))


class _Report(_Body):
    peer: PeerName
    round: Round
    reward: Annotated[int, Field(ge=-(2**255), lt=2**255)]
    winners: Annotated[list[PeerName], Field(max_length=MAX_VOTES)] = []
    salt: Word = "0x" + "00" * 32
    signature: SessionSignature

    def message(self) -> Report:
        return Report(
            self.peer, self.round, self.reward, tuple(self.winners), _bytes(self.salt), _bytes(self.signature)
        )


_BODIES: dict[Kind, type[_Registration] | type[_Commit] | type[_Report]] = {
    "registrations": _Registration,
    "commits": _Commit,
    "reports": _Report,
}


def kind_of(message: SignedMessage) -> Kind:
    """Under which path a message is handed in."""
    return (
        "registrations"
        if isinstance(message, Registration)
        else "commits"
        if isinstance(message, Commit)
        else "reports"
    )


def dump(message: SignedMessage) -> dict[str, Any]:
    """A message as JSON's types."""
    return {name: _json(value) for name, value in vars(message).items() if name in type(message).__dataclass_fields__}


def parse(kind: Kind, body: bytes) -> Sequence[SignedMessage | BadMessage]:
    """One message, or a list of at most 256; those that are none stand as the error that says why.

    Raises:
        BadMessage: the body is no JSON, or too large, or too long a list.
    """
    if len(body) > MAX_BODY:
        raise BadMessage(f"the body has {len(body)} bytes; expected at most {MAX_BODY}")
    try:
        # Not json.loads: how deep that may nest is the interpreter's recursion limit, which libraries raise until it
        # crashes.
        loaded = from_json(body, allow_inf_nan=False)
    except ValueError as error:
        raise BadMessage("the body is no JSON") from error
    entries = loaded if isinstance(loaded, list) else [loaded]
    if not 0 < len(entries) <= MAX_MESSAGES:
        raise BadMessage(f"the body holds {len(entries)} messages; expected 1 to {MAX_MESSAGES}")
    return [_parse(kind, entry) for entry in entries]


def _parse(kind: Kind, entry: object) -> SignedMessage | BadMessage:
    try:
        return _BODIES[kind].model_validate(entry).message()
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(map(str, first["loc"])) or "the message"
        return BadMessage(f"{where}: {first['msg']}")


def _bytes(text: str) -> bytes:
    return bytes.fromhex(text[2:])


def _json(value: object) -> object:
    return "0x" + value.hex() if isinstance(value, bytes) else list(value) if isinstance(value, tuple) else value
