"""The changes to hivemind's control connection: calls that are given up, and the traffic counters."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

import pytest
from hivemind.p2p import P2PDaemonError, PeerID
from hivemind.p2p.p2p_daemon_bindings.control import ControlClient
from hivemind.p2p.p2p_daemon_bindings.utils import write_pbmsg
from hivemind.proto import p2pd_pb2

from swarmgame.swarm.transport import Traffic
from swarmgame.swarm.transports.hivemind_patches import count_traffic

PEER = PeerID(b"\x00\x01a")


class Connection:
    """A patched control client, and the stream that its reader reads."""

    def __init__(self) -> None:
        self.client = SimpleNamespace(
            _pending_calls={},
            _handler_tasks={},
            _pending_messages=asyncio.Queue(),
            persistent_conn_max_msg_size=1000,
            add_unary_handler=self.add,
        )
        self.traffic = Traffic()
        self.handlers = {}
        count_traffic(SimpleNamespace(_client=SimpleNamespace(control=self.client)), self.traffic)
        self.stream = asyncio.StreamReader()
        self.reading = asyncio.ensure_future(ControlClient._read_from_persistent_conn(self.client, self.stream))

    async def add(self, proto, handler, balanced) -> None:
        self.handlers[proto] = handler

    def call(self, data: bytes) -> asyncio.Future:
        return asyncio.ensure_future(self.client.call_unary_handler(PEER, "call", data))

    async def sent(self) -> bytes:
        """Return the id of the next call that was sent to the daemon."""
        return (await self.client._pending_messages.get()).callId

    async def respond(self, call_id: bytes, data: bytes) -> None:
        async def drain() -> None:
            """Return at once, so that the reader does not run yet."""

        writer = SimpleNamespace(write=self.stream.feed_data, drain=drain)
        response = p2pd_pb2.CallUnaryResponse(response=data)
        await write_pbmsg(writer, p2pd_pb2.PersistentConnectionResponse(callId=call_id, callUnaryResponse=response))


def run(test) -> None:
    asyncio.run(asyncio.wait_for(test(), 30.0))


def test_responses_go_to_their_calls_and_are_counted():
    async def test():
        connection = Connection()
        first, second = connection.call(b"a"), connection.call(b"bc")
        ids = [await connection.sent(), await connection.sent()]
        await connection.respond(ids[1], b"2" * 20)
        await connection.respond(ids[0], b"1" * 10)
        assert (await first, await second) == (b"1" * 10, b"2" * 20)
        traffic = connection.traffic
        assert (traffic.messages_sent, traffic.bytes_sent) == (2, 3)
        assert (traffic.messages_received, traffic.bytes_received) == (2, 30)

    run(test)


@pytest.mark.parametrize("when", ["before", "together", "after"])
def test_a_response_to_a_cancelled_call_harms_no_other_call(when):
    async def test():
        connection = Connection()
        cancelled, live = connection.call(b"a"), connection.call(b"b")
        ids = [await connection.sent(), await connection.sent()]
        if when == "before":
            await connection.respond(ids[0], b"late")
        cancelled.cancel()
        if when == "after":
            await asyncio.sleep(0.01)
        if when != "before":
            await connection.respond(ids[0], b"late")
        await connection.respond(ids[1], b"here")
        assert await live == b"here"
        assert not connection.reading.done()
        assert connection.client._pending_calls == {}

    run(test)


def test_a_message_that_is_too_large_is_refused_and_not_counted():
    async def test():
        connection = Connection()
        with pytest.raises(P2PDaemonError, match="expected at most 1000"):
            await connection.call(bytes(1001))
        assert connection.traffic.messages_sent == 0

    run(test)


def test_calls_of_other_peers_are_counted():
    async def test():
        connection = Connection()

        async def handler(data: bytes, sender: PeerID) -> bytes:
            return data * 2

        await connection.client.add_unary_handler("echo", handler)
        assert await connection.handlers["echo"](b"abc", PEER) == b"abcabc"
        assert (connection.traffic.bytes_received, connection.traffic.bytes_sent) == (3, 6)

    run(test)
