"""Transactions made of messages: as many as one can carry, simulated before they are paid for.

A transaction is cut by gas, by bytes and by count, so that it exceeds neither the 16,777,216 gas of EIP-7825 nor the
size that nodes accept. The simulation (`eth_call`) names the entries that the contract would reject; they are left out
and the others are sent.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from swarmgame_chain.abi import decode_result, encode_call, error_name
from swarmgame_chain.errors import NoCoordinator, RequestTooLarge, RpcError
from swarmgame_chain.gateway.queue import QueuedMessage
from swarmgame_chain.messages import MessageKind
from swarmgame_chain.rpc import RpcClient

GAS_CAP = 16_777_216
GAS_TARGET = 15_000_000
BYTES_TARGET = 124_000
"""Nodes accept transactions of up to 128 KiB."""
MAX_FAILED = 3
"""Entries that the node fails to simulate alone, after which it counts as failing for all."""
ALONE_AFTER = 2
"""Failed attempts after which a message is sent alone: it may be the one for which the others of its batch fail."""
RETRY_AFTER = 20
"""Transactions of a smaller size, after which the full size is tried again: the refusal may have had another reason."""
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
        failed: the entries that the node itself refuses to simulate, for whatever reason, and its last reason.
    """

    batch: MessageBatch | None
    refused: tuple[tuple[QueuedMessage, str], ...]
    left: tuple[QueuedMessage, ...]
    reverted: str = ""
    failed: tuple[QueuedMessage, ...] = ()
    error: RpcError | None = None


class BatchSize:
    """How many entries a node takes in one transaction: halved when it refuses one, and kept for the next twenty."""

    def __init__(self) -> None:
        self._most: dict[MessageKind, int] = {}
        self._taken: dict[MessageKind, int] = {}

    def most(self, kind: MessageKind) -> int:
        """Return how many entries of a kind to put into a transaction."""
        return self._most.get(kind, kind.max_per_transaction)

    def refused(self, kind: MessageKind, count: int) -> None:
        """Take in that a transaction of as many entries was refused."""
        self._most[kind], self._taken[kind] = max(1, count // 2), 0

    def taken(self, kind: MessageKind) -> None:
        """Take in that a transaction was taken."""
        if kind in self._most:
            self._taken[kind] += 1
            if self._taken[kind] >= RETRY_AFTER:
                del self._most[kind]


def cut(entries: Sequence[QueuedMessage], most: int = 0) -> tuple[Sequence[QueuedMessage], Sequence[QueuedMessage]]:
    """Return the entries that fit one transaction, and the rest. All are of one kind.

    Args:
        most: the most entries; by default those of the kind.
    """
    gas, size = _BASE_GAS, _BASE_BYTES
    for count, entry in enumerate(entries):
        gas, size = gas + entry.message.gas(), size + entry.message.size()
        full = gas > GAS_TARGET or size > BYTES_TARGET or count >= (most or entry.kind.max_per_transaction)
        if count and (full or max(entry.attempts, entries[0].attempts) >= ALONE_AFTER):
            return entries[:count], entries[count:]
    return entries, []


async def simulate(
    chain: RpcClient,
    sender: str,
    contract: str,
    entries: Sequence[QueuedMessage],
    size: BatchSize | None = None,
    block: str = "latest",
) -> Simulation:
    """Make a transaction of the first entries, as the newest block would execute it.

    Args:
        size: what is known of the node's limits; it learns from refusals.
        block: the newest block.

    Raises:
        ChainUnreachable: the node does not answer; nothing happened.
    """
    size = size or BatchSize()
    kind = entries[0].kind
    refused: list[tuple[QueuedMessage, str]] = []
    failed: list[QueuedMessage] = []
    last_error: RpcError | None = None
    chosen, left = cut(entries, size.most(kind))
    use_cap = False
    while chosen:
        data = encode_call(kind.function, [entry.message.encode() for entry in chosen])
        # The gas limit of the transaction itself: transactions of others in between only make the call cheaper.
        expected = _BASE_GAS + sum(entry.message.gas() for entry in chosen)
        limit = GAS_CAP if use_cap else min(GAS_CAP, expected * 21 // 20)
        call = {"from": sender, "to": contract, "data": "0x" + data.hex(), "gas": hex(limit)}
        result: Any | RpcError | RequestTooLarge
        try:
            (result,) = await chain.request_all([("eth_call", (call, block))])
        except RequestTooLarge as error:
            if len(chosen) == 1:
                raise
            result = error
        if isinstance(result, RpcError | RequestTooLarge):
            if isinstance(result, RpcError) and len(result.data) >= 4:
                return Simulation(None, tuple(refused), (*chosen, *left), error_name(result.data))
            # More expensive than every measurement (modexp may cost more on another chain), a limit of the node, or an
            # entry on which it fails: halve the batch.
            of_gas = isinstance(result, RpcError) and "gas" in result.message.lower()
            if len(chosen) > 1:
                if of_gas or isinstance(result, RequestTooLarge):
                    size.refused(kind, len(chosen))
                chosen, left = chosen[: len(chosen) // 2], (*chosen[len(chosen) // 2 :], *left)
            elif of_gas and limit < GAS_CAP:
                use_cap = True
            elif of_gas:
                refused, chosen = [*refused, (chosen[0], "OutOfGas")], []
            else:
                # The node's own failure is no reason to give up a message; the next ones may have better luck.
                assert isinstance(result, RpcError)
                failed, last_error = [*failed, chosen[0]], result
                chosen, left = cut(left, size.most(kind)) if len(failed) < MAX_FAILED else ([], left)
            continue
        reasons = decode_result(kind.function, bytes.fromhex(result[2:]))
        if len(reasons) != len(chosen):
            raise NoCoordinator(f"{kind.function}() answers for {len(reasons)} of {len(chosen)} entries")
        if not any(map(any, reasons)):
            batch = MessageBatch(tuple(chosen), data, limit)
            return Simulation(batch, tuple(refused), tuple(left), failed=tuple(failed), error=last_error)
        refused += [(entry, error_name(reason)) for entry, reason in zip(chosen, reasons, strict=True) if any(reason)]
        chosen = [entry for entry, reason in zip(chosen, reasons, strict=True) if not any(reason)]
    return Simulation(None, tuple(refused), tuple(left), failed=tuple(failed), error=last_error)
