"""Bounds for hivemind's DHT node: what other peers may store in it, and how many nodes it knows.

hivemind stores any value under any key until the time that its sender names, and remembers each node id that a request
names (hivemind 1.1.12). Here a value of our directory must be a heartbeat of the peer in whose place it is stored. A
few small values of other keys are kept too, since peers of two runs may share one network. Everything expires soon, and
each peer has one node id.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import msgpack
from hivemind.dht.node import DHTNode
from hivemind.dht.routing import DHTID, RoutingTable
from hivemind.dht.storage import DHTLocalStorage, DictionaryDHTValue
from hivemind.p2p import PeerID
from hivemind.utils.timed_storage import get_dht_time

from swarmgame.swarm.membership import MAX_MEMBERS
from swarmgame.swarm.messages import HEARTBEAT_BYTES, Heartbeat, Rejected

VALUE_BYTES = HEARTBEAT_BYTES + 8
"""A heartbeat as the DHT packs it."""
MAX_SECONDS = 75.0
"""Longest that a value is kept, whatever its sender says: as long as a heartbeat counts."""
PLACES_PER_PEER = 4
"""A peer has one place, and one more for each restart."""
OTHER_KEYS, OTHER_VALUES = 64, 512
"""Keys that are not our directory's, and values of all of them together."""
SUBKEY_BYTES = 128
MAX_NODES = 4096

Parse = Callable[[bytes], Heartbeat]
"""Return a heartbeat, or raise `Rejected`."""


def bound_directory(node: DHTNode, directory: DHTID, parse: Parse, refused: Callable[[], None]) -> None:
    """Replace the storage and the routing table of a new node by bounded ones.

    Args:
        directory: the key of our directory.
        parse: checks a heartbeat, its signature included.
        refused: called for each value that is not kept.
    """
    protocol, table = node.protocol, node.protocol.routing_table
    protocol.storage = DirectoryStorage(directory, parse, refused)
    protocol.cache = protocol.storage  # nothing of ours is cached, and what others send as cached is bounded likewise
    protocol.routing_table = BoundedRoutingTable(table.node_id, table.bucket_size, table.depth_modulo)
    DictionaryDHTValue.unpackb = classmethod(_unpack_dictionary)


class DirectoryStorage(DHTLocalStorage):  # type: ignore[misc]  # hivemind has no types
    """The values that other peers store here; see the module."""

    def __init__(self, directory: DHTID, parse: Parse, refused: Callable[[], None]) -> None:
        super().__init__()
        self._directory = directory
        self._parse = parse
        self._refused = refused
        self._places: dict[str, list[str]] = {}

    def store(self, key: DHTID, value: Any, expiration_time: float, subkey: Any = None) -> bool:
        """Refuse values without a place; see `store_subkey` for others."""
        if subkey is None:
            self._refused()
            return False
        return self.store_subkey(key, subkey, value, expiration_time)

    def store_subkey(self, key: DHTID, subkey: Any, value: Any, expiration_time: float) -> bool:
        """Store a value in its place. Return False if it is refused, or an equal or newer one is there."""
        if not self._is_small(subkey, value) or not self._admits(key, subkey, value):
            self._refused()
            return False
        return bool(super().store_subkey(key, subkey, value, min(expiration_time, get_dht_time() + MAX_SECONDS)))

    def items(self) -> Iterator[tuple[DHTID, Any]]:
        """Yield nothing: hivemind sends all of them to each node id that is new to it, and a peer may name any number.
        A node that is new gets the heartbeats from their authors, within seconds.
        """
        return iter(())

    @staticmethod
    def _is_small(subkey: Any, value: Any) -> bool:
        return (
            isinstance(value, bytes)
            and len(value) <= VALUE_BYTES
            and isinstance(subkey, str)
            and len(subkey) <= SUBKEY_BYTES
        )

    def _admits(self, key: DHTID, subkey: str, value: bytes) -> bool:
        known = self.get(key)
        places = known.value if known is not None else ()
        if key == self._directory:
            author = self._author(value)
            if not author or not subkey.startswith(f"{author}/"):
                return False
            return subkey in places or (len(places) < MAX_MEMBERS and self._make_place(author, subkey, places))
        if known is None and len(self) >= OTHER_KEYS:
            return False
        others = sum(len(each.value) for other, each in super().items() if other != self._directory)
        return subkey in places or others < OTHER_VALUES

    def _author(self, value: bytes) -> str:
        try:
            return self._parse(msgpack.unpackb(value, max_map_len=0, max_array_len=0, max_ext_len=0)).peer
        except (Rejected, ValueError, TypeError, msgpack.UnpackException):
            return ""

    def _make_place(self, author: str, subkey: str, places: Any) -> bool:
        """Note a new place of a peer, and drop its oldest one where it has too many."""
        kept = [place for place in self._places.get(author, ()) if place in places]
        for place in kept[: 1 - PLACES_PER_PEER]:
            del places[place]
        self._places[author] = [*kept[1 - PLACES_PER_PEER :], subkey]
        if len(self._places) > 2 * MAX_MEMBERS:
            self._places = {peer: held for peer, held in self._places.items() if any(place in places for place in held)}
            self._places[author] = [subkey]
        return True


class BoundedRoutingTable(RoutingTable):  # type: ignore[misc]
    """A routing table of at most `MAX_NODES` nodes, one for each peer."""

    def add_or_update_node(self, node_id: DHTID, peer_id: PeerID) -> tuple[DHTID, PeerID] | None:
        """See `RoutingTable`. A peer that names another node id than before leaves its earlier place."""
        known = self.get(peer_id=peer_id)
        if known is not None and known != node_id:
            del self[known]
        if node_id not in self and len(self.uid_to_peer_id) >= MAX_NODES:
            return None
        found: tuple[DHTID, PeerID] | None = super().add_or_update_node(node_id, peer_id)
        return found


def _unpack_dictionary(cls: type[DictionaryDHTValue], raw: bytes) -> DictionaryDHTValue:
    """Return a dictionary of the DHT. hivemind's own function takes any number of entries."""
    maxsize, latest, items = msgpack.unpackb(raw, max_array_len=MAX_MEMBERS, max_map_len=0, max_ext_len=0)
    with cls(maxsize).freeze() as found:
        for key, value, expires in items:
            found.store(key, value, expires)
        found.latest_expiration_time = latest
        return found
