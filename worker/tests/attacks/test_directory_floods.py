"""Floods of the DHT node that holds the members' heartbeats: values, places, node ids."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hivemind.dht.routing import DHTID
from hivemind.dht.storage import DHTLocalStorage, DictionaryDHTValue
from hivemind.p2p import PeerID
from hivemind.utils import MSGPackSerializer
from swarms import RUN, Libp2pSwarm

from swarmgame.swarm.identity import Identity, host_of, verify
from swarmgame.swarm.messages import make_heartbeat, parse_heartbeat
from swarmgame.swarm.transports import bounded_directory
from swarmgame.swarm.transports.bounded_directory import (
    MAX_SECONDS,
    OTHER_VALUES,
    PLACES_PER_PEER,
    VALUE_BYTES,
    BoundedRoutingTable,
    DirectoryStorage,
)

DIRECTORY = DHTID.generate(source=f"swarmgame/1/{RUN}/members")
JUNK = b"x" * (1 << 20)


class Stored:
    """A storage, and what it refused."""

    def __init__(self) -> None:
        self.refused = 0
        self.storage = DirectoryStorage(DIRECTORY, lambda message: parse_heartbeat(message, RUN, verify), self._refuse)

    def _refuse(self) -> None:
        self.refused += 1

    def put(self, place: str, value: bytes, *, seconds: float = 30.0, key: DHTID = DIRECTORY) -> bool:
        return self.storage.store_subkey(key, place, value, time.time() + seconds)

    @property
    def places(self) -> set[str]:
        found = self.storage.get(DIRECTORY)
        return {place for place, _ in found.value.items()} if found is not None else set()


def heartbeat_of(identity: Identity, *, process: bytes = b"") -> bytes:
    message = make_heartbeat(RUN, identity.peer, 0, 0, time.time() + 30.0, identity.sign, process=process).message
    packed: bytes = MSGPackSerializer.dumps(message)
    return packed


@pytest.fixture
def stored() -> Stored:
    return Stored()


def test_a_heartbeat_in_the_place_of_its_author_is_stored_and_renewed(stored: Stored) -> None:
    identity = Identity.generate()
    place = f"{identity.peer}/0123abcd"
    assert stored.put(place, heartbeat_of(identity))
    assert stored.put(place, heartbeat_of(identity), seconds=40.0)
    assert (stored.places, stored.refused) == ({place}, 0)


def test_values_that_are_no_heartbeat_of_their_place_are_refused(stored: Stored) -> None:
    author, other = Identity.generate(), Identity.generate()
    value = heartbeat_of(author)
    for place, found in (
        (f"{other.peer}/0123abcd", value),  # in another peer's place
        (author.peer, value),
        (f"{author.peer}/0123abcd", value[:-1] + bytes([value[-1] ^ 1])),  # not signed
        (f"{author.peer}/0123abcd", JUNK),
        (f"{author.peer}/" + "0" * 500, value),
        (f"{author.peer}/0123abcd", MSGPackSerializer.dumps([value])),
    ):
        assert not stored.put(place, found)
    assert not stored.storage.store(DIRECTORY, value, time.time() + 30.0)
    assert not stored.storage.store(DHTID.generate(source="junk"), JUNK, time.time() + 30.0)
    assert (stored.places, stored.refused) == (set(), 8)


def test_a_peer_has_a_few_places_and_the_directory_as_many_as_members(
    stored: Stored, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bounded_directory, "MAX_MEMBERS", 6)
    busy = Identity.generate()
    for number in range(10):
        assert stored.put(f"{busy.peer}/{number}", heartbeat_of(busy))
    assert stored.places == {f"{busy.peer}/{number}" for number in range(10 - PLACES_PER_PEER, 10)}
    others = [Identity.generate() for _ in range(3)]
    kept = [stored.put(f"{other.peer}/0", heartbeat_of(other)) for other in others]
    assert kept == [True, True, False]
    assert stored.put(f"{busy.peer}/9", heartbeat_of(busy), seconds=40.0), "one that is there is renewed"


def test_everything_expires_soon(stored: Stored) -> None:
    identity = Identity.generate()
    assert stored.put(f"{identity.peer}/0", heartbeat_of(identity), seconds=1e9)
    found = stored.storage.get(DIRECTORY)
    assert found.expiration_time <= time.time() + MAX_SECONDS
    assert all(each.expiration_time <= time.time() + MAX_SECONDS for _, each in found.value.items())


def test_a_few_small_values_of_another_run_are_kept_and_no_more(stored: Stored) -> None:
    other = DHTID.generate(source="swarmgame/1/another/members")
    assert [stored.put("a", b"x" * size, key=other) for size in (VALUE_BYTES, VALUE_BYTES + 1)] == [True, False]
    kept = sum(stored.put(f"place {number}", b"x", key=other) for number in range(OTHER_VALUES + 10))
    assert kept == OTHER_VALUES - 1
    keys = [DHTID.generate(source=f"key {number}") for number in range(100)]
    assert not any(stored.put("a", b"x", key=key) for key in keys)


def test_a_peer_has_one_node_id_and_the_table_a_bounded_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bounded_directory, "MAX_NODES", 50)
    table = BoundedRoutingTable(DHTID.generate(), 5, 5)
    peers = [PeerID.from_base58(Identity.generate().peer) for _ in range(60)]
    for number in range(1000):
        table.add_or_update_node(DHTID.generate(source=f"invented {number}"), peers[0])
    assert len(table.uid_to_peer_id) == 1
    for peer in peers:
        table.add_or_update_node(DHTID.generate(), peer)
    assert len(table.uid_to_peer_id) == 50


def test_a_dictionary_of_too_many_values_is_not_unpacked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bounded_directory, "MAX_MEMBERS", 100)
    monkeypatch.setattr(DictionaryDHTValue, "unpackb", classmethod(bounded_directory._unpack_dictionary))
    packed = {}
    for count in (100, 101):
        made = DictionaryDHTValue()
        for number in range(count):
            made.store(f"place {number}", b"x", time.time() + 30.0)
        packed[count] = MSGPackSerializer.dumps(made)
    assert len(MSGPackSerializer.loads(packed[100])) == 100
    with pytest.raises(ValueError, match="101 exceeds max_array_len"):
        MSGPackSerializer.loads(packed[101])


def test_a_node_id_that_is_new_is_not_sent_the_directory(stored: Stored) -> None:
    identity = Identity.generate()
    assert stored.put(f"{identity.peer}/0", heartbeat_of(identity))
    assert list(stored.storage.items()) == []
    assert len(stored.storage) == 1


def test_without_the_bounds_the_storage_keeps_everything() -> None:
    storage = DHTLocalStorage()
    for number in range(20):
        assert storage.store(DHTID.generate(source=f"junk {number}"), JUNK, time.time() + 1e9)
        assert storage.store_subkey(DIRECTORY, f"place {number}", JUNK, time.time() + 1e9)
    assert len(storage) == 21
    assert storage.get(DIRECTORY).expiration_time > time.time() + 1e8


@pytest.mark.parametrize(
    ("address", "host"),
    [
        ("/ip4/192.0.2.1/tcp/31000", "192.0.2.1"),
        ("/ip6/2001:db8:1:2:3:4:5:6/tcp/31000", "2001:db8:1:2::/64"),
        ("/ip6/2001:db8:1:2:ffff::1/tcp/1", "2001:db8:1:2::/64"),
        ("/dns4/example.org/tcp/1", ""),
        ("/ip4/nonsense/tcp/1", ""),
        ("", ""),
    ],
)
def test_the_host_of_an_address(address: str, host: str) -> None:
    assert host_of(address) == host


@pytest.fixture
def swarm(tmp_path: Path) -> Iterator[Libp2pSwarm]:
    made = Libp2pSwarm(tmp_path)
    yield made
    made.close()


def test_a_node_that_is_flooded_keeps_only_heartbeats_and_is_found(swarm: Libp2pSwarm) -> None:
    """A stranger stores large values, overwrites the places of others, and names a hundred node ids."""
    ann = swarm.peer("ann")
    bob = swarm.peer("bob", min_replicas=2)
    rogue = swarm.rogue("mallory")
    protocol = rogue.transport._node.protocol  # type: ignore[attr-defined]
    target = PeerID.from_base58(ann.peer)
    node = ann._node.transport._node  # type: ignore[attr-defined]
    assert node.protocol.storage.__class__ is DirectoryStorage
    place = next(iter(dict(node.protocol.storage.get(DIRECTORY).value.items())))

    async def flood() -> list[object]:
        long = time.time() + 1e9
        answers: list[object] = []
        for number in range(5):
            key = DHTID.generate(source=f"junk {number}")
            answers.append(await protocol.call_store(target, [key], [b"x" * 60_000], long))
        answers.append(await protocol.call_store(target, [key], [JUNK], long))
        answers.append(await protocol.call_store(target, [DIRECTORY], [b"garbage"], long, subkeys=[place]))
        answers.append(await protocol.call_find(target, [DHTID.generate() for _ in range(100)]))
        for _ in range(100):
            protocol.node_info.node_id = DHTID.generate().to_bytes()
            await protocol.call_ping(target)
        return answers

    answers = rogue.thread.run(flood(), 60.0)
    assert answers == [[False]] * 5 + [None, [False], None]
    values = [value for _, (value, _) in node.protocol.storage.get(DIRECTORY).value.items()]
    assert all(len(value) <= VALUE_BYTES for value in values)
    assert len(node.protocol.storage) == 1
    assert len(node.protocol.routing_table.uid_to_peer_id) <= 3
    outcomes = ann._node.outcomes
    assert outcomes["directory-refused"] == 6
    assert (outcomes["too-large"], outcomes["too-many-calls"]) == (2, 0)
    found = bob._thread.run(bob._node.transport.discover(thorough=True), 10.0)
    assert {parse_heartbeat(message, RUN, verify).peer for message in found} == {ann.peer, bob.peer}
