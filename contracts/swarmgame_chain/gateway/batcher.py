"""Transactions made of messages: as many as one can carry, simulated before they are paid for.

A transaction is cut by gas, by bytes and by count, so that it exceeds neither the 16,777,216 gas of EIP-7825 nor the
size that nodes accept. The simulation (`eth_call`) names the entries that the contract would reject; they are left out
and the others are sent.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from swarmgame_chain.abi import decode_result, encode_call, error_name
from swarmgame_chain.errors import RpcError
from swarmgame_chain.gateway.queue import QueuedMessage
from swarmgame_chain.rpc import RpcClient

GAS_CAP = 16_777_216
GAS_TARGET = 15_000_000
BYTES_TARGET = 124_000
"""Nodes accept transactions of up to 128 KiB."""
_BASE_GAS = 60_000
"""Gas of a batch without entries."""
_BASE_BYTES = 200


@dataclass(frozen=True, slots=True)
class MessageBatch:
    """The messages of one transaction, its calldata and its gas limit."""

    entries: tuple[QueuedMessage, ...]
    data: bytes
    gas: int


@dataclass(frozen=True, slots=True)
class Simulation:
    """The result of a simulation.

    Args:
        batch: what to send, if anything.
        refused: the entries that the contract would reject, each with the error's name.
        left: the entries for the next transaction.
        reverted: why the whole call reverts (`EnforcedPause`); then nothing is sent and every entry is left.
    """

    batch: MessageBatch | None
    refused: tuple[tuple[QueuedMessage, str], ...]
    left: tuple[QueuedMessage, ...]
    reverted: str = ""


def cut(entries: Sequence[QueuedMessage]) -> tuple[Sequence[QueuedMessage], Sequence[QueuedMessage]]:
    """Return the entries that fit one transaction, and the rest. All are of one kind."""
    gas, size = _BASE_GAS, _BASE_BYTES
    for count, entry in enumerate(entries):
        gas, size = gas + entry.message.gas(), size + entry.message.size()
        if count and (gas > GAS_TARGET or size > BYTES_TARGET or count >= entry.kind.max_per_transaction):
            return entries[:count], entries[count:]
    return entries, []


async def simulate(chain: RpcClient, sender: str, contract: str, entries: Sequence[QueuedMessage]) -> Simulation:
    """Make a transaction of the first entries, as the newest block would execute it.

    Raises:
        ChainUnreachable: the node does not answer; nothing happened.
        RpcError: the node refuses the call for a reason that is not the contract's.
    """
    refused: list[tuple[QueuedMessage, str]] = []
    chosen, left = cut(entries)
    use_cap = False
    while chosen:
        function = chosen[0].kind.function
        data = encode_call(function, [entry.message.encode() for entry in chosen])
        # The gas limit of the transaction itself: transactions of others in between only make the call cheaper.
        expected = _BASE_GAS + sum(entry.message.gas() for entry in chosen)
        limit = GAS_CAP if use_cap else min(GAS_CAP, expected * 21 // 20)
        call = {"from": sender, "to": contract, "data": "0x" + data.hex(), "gas": hex(limit)}
        (result,) = await chain.request_all([("eth_call", (call, "latest"))])
        if isinstance(result, RpcError):
            if len(result.data) >= 4:
                return Simulation(None, tuple(refused), (*chosen, *left), error_name(result.data))
            if "gas" not in result.message.lower():
                raise result
            # More expensive than every measurement (modexp may cost more on another chain): halve the batch, and allow
            # a single entry the cap.
            if len(chosen) == 1 and limit < GAS_CAP:
                use_cap = True
            elif len(chosen) == 1:
                refused, chosen = [*refused, (chosen[0], "OutOfGas")], []
            else:
                chosen, left = chosen[: len(chosen) // 2], (*chosen[len(chosen) // 2 :], *left)
            continue
        reasons = decode_result(function, bytes.fromhex(result[2:]))
        if not any(map(any, reasons)):
            return Simulation(MessageBatch(tuple(chosen), data, limit), tuple(refused), tuple(left))
        refused += [(entry, error_name(reason)) for entry, reason in zip(chosen, reasons, strict=True) if any(reason)]
        chosen = [entry for entry, reason in zip(chosen, reasons, strict=True) if not any(reason)]
    return Simulation(None, tuple(refused), tuple(left))
