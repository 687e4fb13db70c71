"""Transactions out of messages: as many as one may carry, rehearsed before they are paid for.

A transaction is cut by gas, by bytes and by count, so that none exceeds EIP-7825's 16,777,216 gas or what nodes take in
one message. The rehearsal (`eth_call`) names the entries that the contract would refuse; they are left out, their
neighbours go. Invariant: an entry is in at most one transaction at a time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from swarmgame_chain.abi import decode_result, encode_call, error_name
from swarmgame_chain.errors import RpcError
from swarmgame_chain.gateway.queue import QueuedMessage
from swarmgame_chain.messages import Registration, Report
from swarmgame_chain.rpc import RpcClient
from swarmgame_chain.wire import Kind

GAS_CAP = 16_777_216
GAS_TARGET = 15_000_000
BYTES_TARGET = 124_000
"""Nodes take transactions of up to 128 KiB."""
FUNCTIONS: dict[Kind, str] = {"registrations": "registerPeers", "commits": "commitReports", "reports": "submitReports"}
MOST: dict[Kind, int] = {"registrations": 120, "commits": 256, "reports": 256}


@dataclass(frozen=True, slots=True)
class MessageBatch:
    """One transaction's worth of messages: calldata and the gas to allow."""

    kind: Kind
    entries: tuple[QueuedMessage, ...]
    data: bytes
    gas: int


@dataclass(frozen=True, slots=True)
class Simulation:
    """What a rehearsal gave: what to send, what the contract refuses and why, and what is left for the next
    transaction.
    """

    batch: MessageBatch | None
    refused: tuple[tuple[QueuedMessage, str], ...]
    left: tuple[QueuedMessage, ...]
    reverted: str = ""
    """Why the whole call reverts (`EnforcedPause`); then nothing is sent and all is left."""


def cut(entries: Sequence[QueuedMessage]) -> tuple[Sequence[QueuedMessage], Sequence[QueuedMessage]]:
    """The entries that fit one transaction, and the rest; all of one kind."""
    gas, size = _BASE, 200
    for count, entry in enumerate(entries):
        gas, size = gas + _gas(entry), size + _size(entry)
        if count and (gas > GAS_TARGET or size > BYTES_TARGET or count >= MOST[entry.kind]):
            return entries[:count], entries[count:]
    return entries, []


async def simulate(chain: RpcClient, sender: str, contract: str, entries: Sequence[QueuedMessage]) -> Simulation:
    """Makes a transaction of the first entries, as the newest block would take it.

    Raises:
        ChainUnreachable: the node does not answer; nothing happened.
        RpcError: the node says no for another reason than the contract's.
    """
    refused: list[tuple[QueuedMessage, str]] = []
    chosen, left = cut(entries)
    generous = False
    while chosen:
        function = FUNCTIONS[chosen[0].kind]
        data = encode_call(function, [entry.message.entry() for entry in chosen])
        # With the gas that it will be sent with: if that is enough here, it is enough there, for others' writes only
        # make it cheaper.
        allowed = GAS_CAP if generous else min(GAS_CAP, (_BASE + sum(map(_gas, chosen))) * 21 // 20)
        call = {"from": sender, "to": contract, "data": "0x" + data.hex(), "gas": hex(allowed)}
        (seen,) = await chain.request_all([("eth_call", (call, "latest"))])
        if isinstance(seen, RpcError):
            if len(seen.data) >= 4:
                return Simulation(None, tuple(refused), (*chosen, *left), error_name(seen.data))
            if "gas" not in seen.message.lower():
                raise seen
            # Dearer than all measurements: on another chain modexp may cost more. Alone it may have all the gas there
            # is.
            if len(chosen) == 1 and allowed < GAS_CAP:
                generous = True
                continue
            if len(chosen) == 1:
                refused, chosen = [*refused, (chosen[0], "OutOfGas")], []
                continue
            chosen, left = chosen[: len(chosen) // 2], (*chosen[len(chosen) // 2 :], *left)
            continue
        reasons = decode_result(function, bytes.fromhex(seen[2:]))
        if not any(map(any, reasons)):
            return Simulation(MessageBatch(chosen[0].kind, tuple(chosen), data, allowed), tuple(refused), tuple(left))
        refused += [(entry, error_name(reason)) for entry, reason in zip(chosen, reasons, strict=True) if any(reason)]
        chosen = [entry for entry, reason in zip(chosen, reasons, strict=True) if not any(reason)]
    return Simulation(None, tuple(refused), tuple(left))


_BASE = 60_000
"""Gas of a batch without entries."""


def _gas(entry: QueuedMessage) -> int:
    # The dearest case of each, measured: a peer's first, with every winner's first vote.
    message = entry.message
    if isinstance(message, Registration):
        return 122_000 if len(message.key) == 64 else 230_000
    return 49_000 + 28_000 * len(message.winners) if isinstance(message, Report) else 44_000


def _size(entry: QueuedMessage) -> int:
    message = entry.message
    if isinstance(message, Registration):
        return 416 if len(message.key) == 64 else 736
    return 480 + 128 * len(message.winners) if isinstance(message, Report) else 352
