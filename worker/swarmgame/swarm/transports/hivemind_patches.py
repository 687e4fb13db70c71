"""Changes to hivemind's control connection to the p2p daemon (hivemind 1.1.12).

Traffic is counted, calls of other peers pass the gate before they are read, those that are cancelled are forgotten, and
a call that is given up does no harm to others. In hivemind, cancelling a call cancels the
future that its reader completes; if the response arrives before the call is removed, the reader dies of
`InvalidStateError`, and every later call hangs. Here the future is never cancelled, only dropped.
"""

from __future__ import annotations

import asyncio
import os
from functools import cache, lru_cache
from types import SimpleNamespace
from typing import Any
from uuid import UUID, uuid4

import base58
from hivemind.p2p import P2P, P2PDaemonError, PeerID
from hivemind.p2p.p2p_daemon_bindings import datastructures
from hivemind.proto import p2pd_pb2

from swarmgame.swarm.gate import Gate
from swarmgame.swarm.transport import Traffic, Unreachable

_GOGC = "400"
"""Percent by which the daemon's heap, a few MB, may grow before a garbage collection, unless it is set already."""
_KNOWN_IDS = 4096
_DIRECTORY = "DHTProtocol"
"""In the names of the DHT's calls."""


@cache
def patch_hivemind_ipc() -> None:
    """Reduce the daemon's garbage collections, and cache the base58 of peer ids. Call it before the first start."""
    os.environ.setdefault("GOGC", _GOGC)
    # Every incoming message has its sender's id encoded, by long division.
    encode, decode = lru_cache(_KNOWN_IDS)(base58.b58encode), lru_cache(_KNOWN_IDS)(base58.b58decode)
    datastructures.base58 = SimpleNamespace(b58encode=encode, b58decode=decode)


class _HandlerTasks(dict[UUID, asyncio.Task[Any]]):
    """The calls of other peers that are being answered. hivemind keeps those for ever that were cancelled."""

    def __setitem__(self, call_id: UUID, task: asyncio.Task[Any]) -> None:
        super().__setitem__(call_id, task)
        task.add_done_callback(lambda _: self.pop(call_id, None))


def count_traffic(p2p: P2P, traffic: Traffic, gate: Gate | None = None) -> None:
    """Count every unary message, those of the DHT included, and make calls safe to cancel.

    Args:
        gate: decides which calls of other peers are read; None: all are.
    """
    client = p2p._client.control
    client._handler_tasks = _HandlerTasks()
    add_unary_handler = client.add_unary_handler

    async def call(peer: PeerID, proto: str, data: bytes) -> bytes:
        call_id, response = uuid4(), asyncio.get_running_loop().create_future()
        request = p2pd_pb2.PersistentConnectionRequest(
            callId=call_id.bytes, callUnary=p2pd_pb2.CallUnaryRequest(peer=peer.to_bytes(), proto=proto, data=data)
        )
        if (size := request.ByteSize()) > (limit := client.persistent_conn_max_msg_size):
            raise P2PDaemonError(f"the message has {size} bytes; expected at most {limit}")
        traffic.sent(len(data))
        client._pending_calls[call_id] = response
        try:
            client._pending_messages.put_nowait(request)
            await asyncio.wait([response])  # unlike `await response`, this does not cancel the future
            answer: bytes = response.result()
        finally:
            client._pending_calls.pop(call_id, None)
        traffic.received(len(answer))
        return answer

    async def add(proto: str, handler: Any, balanced: bool = False) -> None:
        directory = proto if _DIRECTORY in proto else ""

        async def counted(data: bytes, sender: PeerID) -> bytes:
            traffic.received(len(data))
            if gate is not None and not gate.admits(sender.to_base58(), len(data), directory):
                raise Unreachable("this peer was called more often than it answers")
            answer: bytes = await handler(data, sender)
            traffic.sent(len(answer))
            if gate is not None:
                gate.answered(sender.to_base58(), len(answer), directory)
            return answer

        await add_unary_handler(proto, counted, balanced)

    client.call_unary_handler, client.add_unary_handler = call, add
