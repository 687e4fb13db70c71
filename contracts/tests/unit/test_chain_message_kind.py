"""A new kind of message is one class and one entry in `KINDS`: a toy kind passes through all of the gateway."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any, Self

import aiohttp
import pytest
from chain_crowd import peer, secret, states, stepped, tester_ground
from pydantic import Field

from swarmgame_chain.errors import BadMessage
from swarmgame_chain.gateway import server
from swarmgame_chain.gateway.queue import QueuedMessage
from swarmgame_chain.messages import KINDS, Commit, Domain, SignedMessage, kind_of_path, sign
from swarmgame_chain.messages.base import COMPARE, DONE, SEND, ChainState, Decision, MessageBody, RoundMessage, reject
from swarmgame_chain.wire import dump, parse


class _Body(MessageBody):
    peer: str
    round: Annotated[int, Field(ge=0)]
    seal: str
    signature: str


@dataclass(frozen=True)
class Pledge(RoundMessage):
    """A toy message: on chain it is a commit."""

    path = "pledges"
    function = "commitReports"
    max_per_transaction = 8
    repeated = "AlreadyPledged"

    peer: str
    round: int
    seal: bytes
    signature: bytes

    @classmethod
    def validate(cls, body: object) -> Self:
        fields = _Body.model_validate(body)
        return cls(fields.peer, fields.round, bytes.fromhex(fields.seal[2:]), bytes.fromhex(fields.signature[2:]))

    def struct_hash(self) -> bytes:
        return Commit(self.peer, self.round, self.seal, b"").struct_hash()

    def decide_by_round(self, newest: Any, settled: Any, state: ChainState) -> Decision:
        return COMPARE if newest.seal_of(self.round) is not None else SEND

    def encode(self) -> tuple[object, ...]:
        return (self.peer, self.round, self.seal, self.signature)

    def gas(self) -> int:
        return 44_000

    def size(self) -> int:
        return 352

    async def outcome(self, coordinator: Any, newest: Any, config: Any, head: int) -> Decision:
        return DONE if newest.seal_of(self.round) == self.seal[:28] else reject(self.repeated)


@pytest.fixture(autouse=True)
def registered() -> Iterator[None]:
    KINDS.append(Pledge)
    yield
    KINDS.remove(Pledge)


def pledge(domain: Domain, number: int, seal: bytes = b"\x01" + bytes(31)) -> Pledge:
    unsigned = Pledge(peer(number), 0, seal, b"")
    return Pledge(peer(number), 0, seal, sign(secret(number), unsigned.digest(domain)))


async def test_a_new_kind_goes_from_json_to_its_outcome_on_chain() -> None:
    ground = await tester_ground(sealed_reports=True)
    gateway = ground.gateway()
    await stepped(gateway, [ground.registration(n) for n in range(2)])
    message = pledge(ground.domain, 0)

    # From JSON.
    (parsed,) = parse(kind_of_path("pledges"), json.dumps(dump(message)).encode())
    assert parsed == message
    (bad,) = parse(Pledge, b'{"peer": 1}')
    assert isinstance(bad, BadMessage)

    # Admission, decision, transaction, and the contract's answer.
    assert isinstance(parsed, SignedMessage)
    forged = pledge(ground.domain, 1)
    forged = Pledge(peer(1), 0, bytes(32), forged.signature)
    unknown = pledge(ground.domain, 7)
    entries = await stepped(gateway, [parsed, forged, unknown, parsed])
    assert states(entries) == ["final", "rejected InvalidSignature", "rejected UnknownPeer", "final"]
    assert (await ground.coordinator.peer(peer(0))).seal_of(0) == message.seal[:28]
    assert gateway.status()["waiting"]["pledges"] == 0
    assert gateway.queue.ended["pledges", "final", ""] == 1  # type: ignore[index]

    # A gateway that remembers nothing compares with the chain.
    other = pledge(ground.domain, 0, b"\x02" + bytes(31))
    fresh = ground.gateway()
    entries = await stepped(fresh, [message])
    assert states(entries) == ["final"]
    assert states(await stepped(fresh, [other])) == ["rejected AlreadyPledged"]
    assert fresh.sender.counts.sent == 0


async def test_every_kind_has_a_route() -> None:
    ground = await tester_ground()
    gateway = ground.gateway()
    await gateway.start()
    http = server.HttpServer(gateway)
    port = await http.start()
    try:
        async with aiohttp.ClientSession() as session:
            for kind in KINDS:
                async with session.post(f"http://127.0.0.1:{port}/v1/{kind.path}", data=b"{}") as response:
                    assert response.status == 400
            async with session.post(f"http://127.0.0.1:{port}/v1/others", data=b"{}") as response:
                assert response.status == 404
    finally:
        await http.close()


def test_a_message_waits_in_the_queue_by_its_own_kind() -> None:
    domain = Domain(31337, "0x" + "11" * 20)
    entry = QueuedMessage("a", pledge(domain, 1))
    assert (entry.kind, entry.subject) == (Pledge, (Pledge, peer(1), 0))
