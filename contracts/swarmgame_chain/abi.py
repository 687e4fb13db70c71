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

from eth_abi.abi import decode, encode
from eth_abi.exceptions import DecodingError
from eth_utils.crypto import keccak

from swarmgame_chain.errors import ChainRefused

ARTIFACT = "SwarmCoordinator.json"


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


def creation_code(owner: str, config: Sequence[Any]) -> bytes:
    """Return the calldata that creates a coordinator.

    Args:
        config: roundDuration, minRoundTime, maxReward, sealedReports, provenOnly.
    """
    arguments: bytes = encode(["address", "(uint32,uint32,uint96,bool,bool)"], [owner, tuple(config)])
    return bytes.fromhex(artifact()["bytecode"][2:]) + arguments


def encode_call(name: str, *arguments: Any) -> bytes:
    """Return the calldata of a call."""
    function = _functions()[name]
    encoded: bytes = encode(function.inputs, arguments)
    return function.selector + encoded


def decode_result(name: str, data: bytes) -> Any:
    """Return a function's result: the value, or a tuple where there are several.

    Raises:
        ChainRefused: the bytes are not such a result, so another contract answered.
    """
    try:
        values = decode(_functions()[name].outputs, data)
    except (DecodingError, OverflowError) as error:
        raise ChainRefused(
            f"{name}() at this address answered {len(data)} bytes that are none of a SwarmCoordinator's"
        ) from error
    return values[0] if len(values) == 1 else values


def decode_call(name: str, data: bytes) -> tuple[Any, ...] | None:
    """Return the arguments of a call; None when the data is not a call of this function."""
    function = _functions()[name]
    if data[:4] != function.selector:
        return None
    try:
        return tuple(decode(function.inputs, data[4:]))
    except (DecodingError, OverflowError, ValueError):
        return None


def error_name(data: bytes) -> str:
    """Return a custom error's name by its first four bytes; `0x…` when it is unknown."""
    return _errors().get(bytes(data[:4]), f"0x{bytes(data[:4]).hex()}")


def selector(error: str) -> bytes:
    """Return the first four bytes of a custom error without arguments."""
    return bytes(keccak(text=f"{error}()")[:4])


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
            i["name"]: decode([i["type"]], bytes.fromhex(word[2:]))[0]
            for i, word in zip(indexed, topics[1:], strict=True)
        }
        values |= dict(
            zip(
                (i["name"] for i in plain),
                decode([i["type"] for i in plain], bytes.fromhex(log["data"][2:])),
                strict=True,
            )
        )
    except (DecodingError, ValueError, OverflowError):
        return None
    return ContractEvent(
        entry["name"], values, log["transactionHash"], position, int(log["blockNumber"], 16), log["blockHash"]
    )


def rejected_entries(receipt: Mapping[str, Any]) -> dict[int, str]:
    """Return the entries of a mined batch that the contract rejected: index → the error's name."""
    events = (decode_log(log, 0) for log in receipt["logs"])
    found = [event for event in events if event is not None and event.name == "EntryRejected"]
    return {event.values["index"]: error_name(event.values["reason"]) for event in found}


@dataclass(frozen=True, slots=True)
class _Function:
    selector: bytes
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


def _type(entry: Mapping[str, Any]) -> str:
    name: str = entry["type"]
    return name.replace("tuple", f"({','.join(map(_type, entry['components']))})") if name.startswith("tuple") else name


def _signature(entry: Mapping[str, Any]) -> str:
    return f"{entry['name']}({','.join(map(_type, entry['inputs']))})"


@cache
def _functions() -> Mapping[str, _Function]:
    return {
        entry["name"]: _Function(
            bytes(keccak(text=_signature(entry))[:4]),
            tuple(map(_type, entry["inputs"])),
            tuple(map(_type, entry["outputs"])),
        )
        for entry in artifact()["abi"]
        if entry["type"] == "function"
    }


@cache
def _errors() -> Mapping[bytes, str]:
    # Errors that only a batch's EntryRejected names may be missing from the ABI.
    known = {
        bytes(keccak(text=_signature(entry))[:4]): str(entry["name"])
        for entry in artifact()["abi"]
        if entry["type"] == "error"
    }
    return known | {selector(name): name for name in BATCH_ERRORS}


@cache
def _events() -> Mapping[str, Mapping[str, Any]]:
    return {
        "0x" + keccak(text=_signature(entry)).hex(): entry for entry in artifact()["abi"] if entry["type"] == "event"
    }


BATCH_ERRORS = (
    "InvalidOwner",
    "RegistrationExpired",
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
