"""The way to and from the p2p daemon: hivemind's control connection, with the costs taken out that grow with the number
of messages.

hivemind writes a message a system call and reads its length a byte at a time; each write wakes the daemon, which on a
small machine costs more than the message. Here all messages that wait go out in one write, and all that have arrived
come in with one read. What an abandoned call is answered is dropped (hivemind's reader dies of it, and with it every
later call). Nothing else is changed: calls, handlers and streams are hivemind's. Invariant: a call that has been handed
to the daemon is never cancelled, only abandoned; every unary message is counted.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable
from contextlib import closing
from functools import cache, lru_cache
from types import SimpleNamespace
from typing import Any
from uuid import UUID, uuid4

import base58
from google.protobuf.message import Message  # type: ignore[import-untyped]
from hivemind.p2p import P2P, P2PDaemonError, P2PHandlerError, PeerID
from hivemind.p2p.p2p_daemon_bindings import control, datastructures
from hivemind.proto import p2pd_pb2

from swarmgame.swarm.transports.base import Traffic

logger = logging.getLogger(__name__)

_GOGC = "400"
"""Percent by which a daemon's heap may grow before Go sweeps it; unless the environment says otherwise."""
_KNOWN_IDS = 4096
_READ = 1 << 18
_LONGEST_HEAD = 10
"""Bytes of a length: seven bits each, of 64."""


@cache
def patch_hivemind_ipc() -> None:
    """Takes four costs out of hivemind, before the first daemon starts."""
    # The daemon's heap is a few megabytes, yet Go walks it every time that it doubles.
    os.environ.setdefault("GOGC", _GOGC)
    # One write for all messages that wait, and one read for all that have come.
    control.write_pbmsg = _write_message
    control.ControlClient._write_to_persistent_conn = _write_all
    control.ControlClient._read_from_persistent_conn = _read_all
    # Every message that comes in has its sender's id put into base 58, by long division.
    encode, decode = lru_cache(_KNOWN_IDS)(base58.b58encode), lru_cache(_KNOWN_IDS)(base58.b58decode)
    datastructures.base58 = SimpleNamespace(b58encode=encode, b58decode=decode)


def count_traffic(p2p: P2P, traffic: Traffic) -> None:
    """Counts every unary message, the DHT's own included, and lets calls be abandoned."""
    client = p2p._client.control
    add = client.add_unary_handler

    async def metered_call(peer_id: PeerID, proto: str, data: bytes) -> bytes:
        traffic.sent(len(data))
        call, answered = uuid4(), asyncio.get_running_loop().create_future()
        request = p2pd_pb2.CallUnaryRequest(peer=peer_id.to_bytes(), proto=proto, data=data)
        message = p2pd_pb2.PersistentConnectionRequest(callId=call.bytes, callUnary=request)
        if message.ByteSize() > client.persistent_conn_max_msg_size:
            raise P2PDaemonError(
                f"a message of {message.ByteSize()} bytes; the most is {client.persistent_conn_max_msg_size}"
            )
        client._pending_calls[call] = answered
        client._pending_messages.put_nowait(message)
        try:
            answer: bytes = await answered
        finally:
            client._pending_calls.pop(call, None)
        traffic.received(len(answer))
        return answer

    async def metered_add(proto: str, handler: Any, balanced: bool = False) -> None:
        async def metered(data: bytes, remote: PeerID) -> bytes:
            traffic.received(len(data))
            answer: bytes = await handler(data, remote)
            traffic.sent(len(answer))
            return answer

        await add(proto, metered, balanced)

    client.call_unary_handler, client.add_unary_handler = metered_call, metered_add
    client.add_plain_handler = add


async def add_sync_handler(p2p: P2P, proto: str, handler: Callable[[bytes, PeerID], bytes], traffic: Traffic) -> None:
    """Has calls answered at once, without a task for each: the handler must neither wait nor take long. What it raises
    is answered.
    """

    def counted(data: bytes, remote: PeerID) -> bytes:
        traffic.received(len(data))
        response = handler(data, remote)
        traffic.sent(len(response))
        return response

    async def answer(data: bytes, remote: PeerID) -> bytes:
        return counted(data, remote)

    client = p2p._client.control
    await client.add_plain_handler(proto, answer)
    client.quick_handlers = {**getattr(client, "quick_handlers", {}), proto: counted}


def _framed(message: Message) -> bytes:
    payload: bytes = message.SerializeToString()
    head, rest = bytearray(), len(payload)
    while rest > 0x7F:
        head.append(rest & 0x7F | 0x80)
        rest >>= 7
    head.append(rest)
    return bytes(head) + payload


async def _write_message(stream: asyncio.StreamWriter, message: Message) -> None:
    stream.write(_framed(message))
    await stream.drain()


async def _write_all(client: Any, writer: asyncio.StreamWriter) -> None:
    """In place of `ControlClient._write_to_persistent_conn`."""
    waiting: asyncio.Queue[Message] = client._pending_messages
    with closing(writer):
        while True:
            messages = [await waiting.get()]
            while not waiting.empty():
                messages.append(waiting.get_nowait())
            writer.write(b"".join(map(_framed, messages)))
            await writer.drain()


async def _read_all(client: Any, reader: asyncio.StreamReader) -> None:
    """In place of `ControlClient._read_from_persistent_conn`; ends when the daemon does."""
    arrived = bytearray()
    while chunk := await reader.read(_READ):
        arrived += chunk
        at = 0
        while (place := _message_at(arrived, at)) is not None:
            start, at = place
            _take(client, p2pd_pb2.PersistentConnectionResponse.FromString(bytes(arrived[start:at])))
        del arrived[:at]


def _message_at(arrived: bytearray, at: int) -> tuple[int, int] | None:
    """Where the message begins and ends whose length stands at a place; None while a part of it is missing.

    Raises:
        P2PDaemonError: what stands there is no length.
    """
    size = 0
    for count, byte in enumerate(arrived[at : at + _LONGEST_HEAD]):
        size |= (byte & 0x7F) << 7 * count
        if byte <= 0x7F:
            start = at + count + 1
            return (start, start + size) if start + size <= len(arrived) else None
    if len(arrived) - at >= _LONGEST_HEAD:
        raise P2PDaemonError("the p2p daemon's control connection carries something else than messages")
    return None


def _take(client: Any, message: Any) -> None:
    """Gives an answer to its caller, or a request to its handler."""
    call, kind = UUID(bytes=message.callId), message.WhichOneof("message")
    if kind == "requestHandling":
        request = message.requestHandling
        quick = getattr(client, "quick_handlers", {}).get(request.proto)
        if quick is None:
            client._handler_tasks[call] = asyncio.ensure_future(client._handle_persistent_request(call, request))
            return
        try:
            response = p2pd_pb2.CallUnaryResponse(response=quick(request.data, PeerID(request.peer)))
        except Exception as error:  # noqa: BLE001 - whatever a stranger's bytes bring about, the connection serves all the others too
            logger.warning("a call was not understood: %r", error)
            response = p2pd_pb2.CallUnaryResponse(error=repr(error).encode())
        client._pending_messages.put_nowait(
            p2pd_pb2.PersistentConnectionRequest(callId=call.bytes, unaryResponse=response)
        )
        return
    if kind == "cancel":
        if call in client._handler_tasks:
            client._handler_tasks[call].cancel()
        return
    answered = client._pending_calls.get(call)
    if answered is None or answered.done():
        return
    if kind == "daemonError":
        answered.set_exception(P2PDaemonError(message.daemonError.message))
    elif kind != "callUnaryResponse":
        answered.set_result(None)
    elif message.callUnaryResponse.WhichOneof("result") == "error":
        answered.set_exception(P2PHandlerError(message.callUnaryResponse.error.decode(errors="ignore")))
    else:
        answered.set_result(message.callUnaryResponse.response)
