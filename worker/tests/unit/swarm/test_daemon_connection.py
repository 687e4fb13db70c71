"""The control connection to the p2p daemon: what goes out together, what comes in by pieces, and what strangers' calls
may bring about.
"""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from uuid import uuid4

import pytest
from hivemind.p2p import P2PDaemonError
from hivemind.proto import p2pd_pb2

from swarmgame.swarm.transports.hivemind_patches import _framed, _read_all, _write_all


def client(**more):
    return SimpleNamespace(
        _pending_calls={}, _handler_tasks={}, _pending_messages=asyncio.Queue(), quick_handlers={}, **more
    )


def answer(call, data):
    return p2pd_pb2.PersistentConnectionResponse(
        callId=call.bytes, callUnaryResponse=p2pd_pb2.CallUnaryResponse(response=data)
    )


def request(call, data):
    asked = p2pd_pb2.CallUnaryRequest(peer=b"\x00\x01a", proto="call", data=data)
    return p2pd_pb2.PersistentConnectionResponse(callId=call.bytes, requestHandling=asked)


async def fed(ours, pieces):
    reader = asyncio.StreamReader()
    reading = asyncio.ensure_future(_read_all(ours, reader))
    for piece in pieces:
        reader.feed_data(piece)
        await asyncio.sleep(0)
    reader.feed_eof()
    await reading


@pytest.mark.parametrize("step", [1, 3, 200, 1_000_000])
def test_answers_find_their_calls_however_the_bytes_arrive(step):
    async def scene():
        ours = client()
        bodies = [b"", b"x" * 100, b"y" * 20_000]
        calls = [uuid4() for _ in bodies]
        waiting = [asyncio.get_running_loop().create_future() for _ in bodies]
        ours._pending_calls = dict(zip(calls, waiting, strict=True))
        stream = b"".join(_framed(answer(call, body)) for call, body in zip(calls, bodies, strict=True))
        await fed(ours, [stream[at : at + step] for at in range(0, len(stream), step)])
        assert [future.result() for future in waiting] == bodies

    asyncio.run(scene())


def test_an_answer_to_an_abandoned_call_harms_no_other():
    async def scene():
        ours, abandoned, gone, live = client(), uuid4(), uuid4(), uuid4()
        loop = asyncio.get_running_loop()
        ours._pending_calls = {abandoned: loop.create_future(), live: loop.create_future()}
        ours._pending_calls[abandoned].cancel()
        await fed(
            ours,
            [
                _framed(answer(abandoned, b"late"))
                + _framed(answer(gone, b"never asked"))
                + _framed(answer(live, b"here"))
            ],
        )
        assert ours._pending_calls[live].result() == b"here"

    asyncio.run(scene())


def test_a_handler_that_raises_answers_its_caller_and_the_next_call_is_served():
    async def scene():
        ours, first, second = client(), uuid4(), uuid4()
        ours.quick_handlers = {"call": lambda data, sender: bytes([100 // data[0]])}
        await fed(ours, [_framed(request(first, b"\x00")) + _framed(request(second, b"\x02"))])
        refused, served = (ours._pending_messages.get_nowait() for _ in range(2))
        assert refused.callId == first.bytes
        assert b"ZeroDivisionError" in refused.unaryResponse.error
        assert (served.callId, served.unaryResponse.response) == (second.bytes, b"\x32")

    asyncio.run(scene())


def test_what_is_no_message_ends_the_reading_by_name():
    async def scene():
        with pytest.raises(P2PDaemonError, match="something else than messages"):
            await fed(client(), [b"\xff" * 16])

    asyncio.run(scene())


def test_all_messages_that_wait_go_out_in_one_write():
    async def scene():
        written = []

        async def drain():
            if len(written) == 1:
                ours._pending_messages.put_nowait(answer(uuid4(), b"later"))

        writer = SimpleNamespace(write=written.append, drain=drain, close=lambda: None)
        ours = client()
        messages = [answer(uuid4(), bytes(number)) for number in range(5)]
        for message in messages:
            ours._pending_messages.put_nowait(message)
        writing = asyncio.ensure_future(_write_all(ours, writer))
        while len(written) < 2:
            await asyncio.sleep(0)
        writing.cancel()
        assert written[0] == b"".join(map(_framed, messages))

    asyncio.run(scene())
