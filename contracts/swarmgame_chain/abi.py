"""The contract's ABI: encode calls, decode results, name errors, and read events into dataclasses.

Everything comes from the committed artifact; there is no network access. A log of another contract, or one that does
not decode, is None and not an exception, since other contracts share the chain.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from eth_abi.abi import encode
from eth_abi.codec import ABIDecoder
from eth_abi.decoding import ContextFramesBytesIO
from eth_abi.exceptions import DecodingError, InsufficientDataBytes
from eth_abi.registry import registry
from eth_utils.abi import (
    abi_to_signature,
    event_abi_to_log_topic,
    function_abi_to_4byte_selector,
    function_signature_to_4byte_selector,
    get_abi_input_types,
    get_abi_output_types,
)

from swarmgame_chain.errors import NoCoordinator

ARTIFACT = "SwarmCoordinator.json"
MAX_RESULT = 64 << 10
"""Bytes of a function's result; the longest, 16 bootnodes or a reason for each of 256 entries, has 8 KiB."""
MAX_DATA = 128 << 10
"""Bytes of a call or of a log; nodes take no longer transaction."""
_READS = 4
"""How often a decoder may read each byte: twice for offsets, which it checks first, else once."""


@dataclass(frozen=True, slots=True)
class ContractEvent:
    """A decoded log.

    Args:
        name: the event's, `PeerProven`.
        values: its arguments by name; addresses as lower-case hexadecimal text, `bytesN` as bytes.
        transaction: hash of the transaction, 0x and 64 digits.
        position: index among the transaction's logs of this contract; a reorganisation that moves the transaction
            does not change it.
        block: number of its block.
        block_hash: 0x and 64 digits.
    """

    name: str
    values: Mapping[str, Any]
    transaction: str
    position: int
    block: int
    block_hash: str


@cache
def artifact() -> Mapping[str, Any]:
    """The compiled contract: `abi`, `bytecode`, `settings`, `compiler`, `size`."""
    here = Path(__file__).resolve().parent
    installed = here / ARTIFACT
    path = installed if installed.exists() else here.parent / "artifacts" / ARTIFACT
    loaded: Mapping[str, Any] = json.loads(path.read_text())
    return loaded


def encode_call(name: str, *arguments: Any) -> bytes:
    """Return the calldata of a call."""
    function = _functions()[name]
    # eth_abi keeps the encoder of these types.
    encoded: bytes = encode(function.inputs, arguments)
    return function.selector + encoded


def decode_result(name: str, data: bytes) -> Any:
    """Return a function's result: the value, or a tuple where there are several.

    Raises:
        NoCoordinator: the bytes are not such a result.
    """
    try:
        values = _decode(_functions()[name].outputs, data, MAX_RESULT)
    except _INVALID as error:
        raise NoCoordinator(f"{name}() answers {len(data)} bytes that are none of a SwarmCoordinator's") from error
    return values[0] if len(values) == 1 else values


def decode_call(name: str, data: bytes) -> tuple[Any, ...] | None:
    """Return the arguments of a call; None when the data is not a call of this function."""
    function = _functions()[name]
    if data[:4] != function.selector:
        return None
    try:
        return _decode(function.inputs, data[4:], MAX_DATA)
    except _INVALID:
        return None


def error_name(data: bytes) -> str:
    """Return a custom error's name by its first four bytes; `0x…` when it is unknown."""
    return _errors().get(bytes(data[:4]), f"0x{bytes(data[:4]).hex()}")


def selector(error: str) -> bytes:
    """Return the first four bytes of a custom error without arguments."""
    return function_signature_to_4byte_selector(f"{error}()")


def topic(event: str) -> str:
    """Return the first topic of an event's logs."""
    return next(topic for topic, entry in _events().items() if entry["name"] == event)


def decode_log(log: Mapping[str, Any], position: int) -> ContractEvent | None:
    """Return a log of `eth_getLogs` as an event, or None when it is not one of the contract."""
    topics = log["topics"]
    entry = _events().get(topics[0]) if topics else None
    if entry is None:
        return None
    indexed = [i for i in entry["inputs"] if i["indexed"]]
    plain = [i for i in entry["inputs"] if not i["indexed"]]
    try:
        values = {
            i["name"]: _decode([i["type"]], bytes.fromhex(word[2:]), MAX_DATA)[0]
            for i, word in zip(indexed, topics[1:], strict=True)
        }
        values |= dict(
            zip(
                (i["name"] for i in plain),
                _decode([i["type"] for i in plain], bytes.fromhex(log["data"][2:]), MAX_DATA),
                strict=True,
            )
        )
    except _INVALID:
        return None
    return ContractEvent(
        entry["name"], values, log["transactionHash"], position, int(log["blockNumber"], 16), log["blockHash"]
    )


def rejected_entries(receipt: Mapping[str, Any]) -> dict[int, str]:
    """Return the entries of a mined batch that the contract rejected: index → the error's name."""
    events = (decode_log(log, 0) for log in receipt["logs"])
    found = [event for event in events if event is not None and event.name == "EntryRejected"]
    return {event.values["index"]: error_name(event.values["reason"]) for event in found}


class _BoundedStream(ContextFramesBytesIO):
    """Bounds what is read: offsets may point to the same bytes, so that 1 MB of them decodes to gigabytes."""

    def __init__(self, data: bytes) -> None:
        super().__init__(data)  # type: ignore[no-untyped-call]
        self._left = _READS * len(data)

    def read(self, size: int | None = -1, /) -> bytes:
        found = super().read(size)
        self._left -= len(found)
        if self._left < 0:
            raise InsufficientDataBytes("parts of the data overlap")
        return found


class _Decoder(ABIDecoder):
    stream_class = _BoundedStream


# A string that is not UTF-8 is a ValueError.
_INVALID = (DecodingError, OverflowError, ValueError)
_decoder = _Decoder(registry)


def _decode(types: Sequence[str], data: bytes, most: int) -> tuple[Any, ...]:
    if len(data) > most:
        raise InsufficientDataBytes(f"{len(data)} bytes are more than {most}")
    return tuple(_decoder.decode(types, data))


@dataclass(frozen=True, slots=True)
class _Function:
    selector: bytes
    inputs: Sequence[str]
    outputs: Sequence[str]


@cache
def _functions() -> Mapping[str, _Function]:
    return {
        entry["name"]: _Function(
            function_abi_to_4byte_selector(entry), get_abi_input_types(entry), get_abi_output_types(entry)
        )
        for entry in artifact()["abi"]
        if entry["type"] == "function"
    }


@cache
def _errors() -> Mapping[bytes, str]:
    # Errors that only a batch's EntryRejected names may be missing from the ABI.
    known = {
        function_signature_to_4byte_selector(abi_to_signature(entry)): str(entry["name"])
        for entry in artifact()["abi"]
        if entry["type"] == "error"
    }
    return known | {selector(name): name for name in BATCH_ERRORS}


@cache
def _events() -> Mapping[str, Mapping[str, Any]]:
    return {
        "0x" + event_abi_to_log_topic(entry).hex(): entry for entry in artifact()["abi"] if entry["type"] == "event"
    }


BATCH_ERRORS = (
    "InvalidOwner",
    "RegistrationExpired",
    "RegistrationTooLong",
    "InvalidKey",
    "InvalidSignature",
    "RegistrationSuperseded",
    "InvalidPeerId",
    "InvalidRoundNumber",
    "UnknownPeer",
    "RewardAlreadySubmitted",
    "InvalidVote",
    "WinnerAlreadyVoted",
    "SealMismatch",
    "NotSealed",
    "AlreadySealed",
)
"""Reasons for which an entry of a batch is left out."""
