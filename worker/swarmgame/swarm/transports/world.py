"""The world of the torch.distributed backend: its seats, and the store in which they are written down.

Peer 0 hosts a TCPStore; every peer reads and writes it from one thread of its own, and all others look at what that
thread last saw. A seat holds who sits there, which start of it this is (an incarnation: random, so that a restart is
told from a reconnection), its last heartbeat, and which pairing it offers to each other seat (see `neighbour`). A store
that comes back empty, because peer 0 was restarted, is filled again.

Invariants: what is read from the store is data, checked before use; nobody waits for the store, which may be away; when
it stays away without a goodbye, or another process takes our seat, `lost` says so.
"""

from __future__ import annotations

import logging
import resource
import secrets
import socket
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, cast

import msgpack
from torch._C._distributed_c10d import PrefixStore, Store, TCPStore

from swarmgame.errors import Temporary
from swarmgame.game.state import PeerId

logger = logging.getLogger(__name__)

HEARTBEAT_BYTES = 1 << 10
LOST_SECONDS = 120.0
"""How long peer 0 may be away: as long as a pod takes to be started again."""
_ANSWER_SECONDS = 2.0
_AGAIN_SECONDS = 0.2
_PAIRING_SECONDS, _CALM_SECONDS = 0.1, 1.0
"""Between two looks at the store: while some seat is not paired, and when all are."""
_SEAT_BYTES = 64 << 10
_PAIRINGS = 1 << 32
"""Numbers above are none: they would grow beyond what can be written down."""
_OURS = ("seat", "heartbeat")


@dataclass(frozen=True)
class Place:
    """Where a peer sits, and where its world meets.

    Args:
        index: our seat; 0 hosts the store.
        size: how many seats there are.
        host, port: of the store.
    """

    index: int
    size: int
    host: str
    port: int

    @property
    def loopback(self) -> bool:
        """Whether the whole world is on this machine."""
        return self.host == "localhost" or self.host.startswith("127.")


@dataclass(frozen=True)
class Seat:
    """What a peer has written down of itself.

    Args:
        offers: by seat: the incarnation that is offered a pairing, and the pairing's number.
    """

    incarnation: str
    peer: PeerId
    offers: Mapping[int, tuple[str, int]] = field(default_factory=dict)

    def packed(self) -> bytes:
        packed: bytes = msgpack.packb(
            [self.incarnation, self.peer, [[index, *offer] for index, offer in self.offers.items()]]
        )
        return packed


def parse_seat(data: bytes) -> Seat | None:
    """A seat, or None when it is not taken or cannot be read."""
    if not 0 < len(data) <= _SEAT_BYTES:
        return None
    try:
        incarnation, peer, offers = msgpack.unpackb(data, max_map_len=0, max_ext_len=0)
        seat = Seat(incarnation, peer, {index: (to, number) for index, to, number in offers})
    except (ValueError, TypeError, RecursionError, OverflowError, msgpack.UnpackException):
        return None
    offered = all(
        isinstance(i, int) and isinstance(to, str) and type(n) is int and 0 <= n < _PAIRINGS
        for i, (to, n) in seat.offers.items()
    )
    return seat if isinstance(incarnation, str) and isinstance(peer, str) and offered else None


class World:
    """One peer's sight of all seats, kept up to date by a thread.

    Args:
        run: name of the run; its keys are kept apart from those of others.
        calm: whether we are paired with all seats, so that looking seldom is enough; asked by the thread.
        seen: told, by the thread, when the store has been read.
    """

    def __init__(
        self,
        run: str,
        place: Place,
        peer: PeerId,
        *,
        calm: Callable[[], bool] = lambda: True,
        seen: Callable[[], None] = lambda: None,
        lost_seconds: float = LOST_SECONDS,
    ) -> None:
        self.place, self.incarnation = place, secrets.token_hex(8)
        self.changed = threading.Condition()
        """Guards all that follows; told when a seat has changed, and at the end."""
        self.closing = False
        self.excused = ""
        """The incarnation of peer 0 that has said goodbye: its store is not waited for."""
        self.seats: Sequence[Seat | None] = (None,) * place.size
        self.heartbeats: Sequence[bytes] = ()
        self._directory = f"swarmgame/1/{run}"
        self._peer, self._calm, self._seen, self._lost_seconds = peer, calm, seen, lost_seconds
        self._offers: dict[int, tuple[str, int]] = {}
        self._heartbeat = b""
        self._unsaid = set(_OURS)
        self._answered: float | None = None
        self._usurped = False
        self._server: Store | None = None
        self._wake = threading.Event()
        self._thread = threading.Thread(target=self._follow, name=f"world-{place.index}", daemon=True)

    def open(self) -> None:
        """Hosts the store, where that is ours to do, and begins to look.

        Raises:
            Temporary: the port is taken.
        """
        if self.place.index == 0:
            self._server = _hosted(self.place)
        self._thread.start()

    @property
    def lost(self) -> str:
        """Why this peer's world is over, as a sentence; empty while it is not."""
        if self._usurped:
            return f"another process has taken seat {self.place.index} of this world"
        away = 0.0 if self._answered is None else time.monotonic() - self._answered
        host = self.seats[0]
        if (
            away < self._lost_seconds
            or self.place.index == 0
            or (host is not None and host.incarnation == self.excused)
        ):
            return ""
        return f"peer 0, which hosts the store at {self.place.host}:{self.place.port}, is gone; the world has to be started again"

    def offer(self, index: int, incarnation: str, number: int) -> None:
        """Offers a seat a pairing; `changed` must be held."""
        self._offers[index] = (incarnation, number)
        self._say("seat")

    def offered_by(self, index: int, incarnation: str) -> int:
        """The number of the pairing that a seat offers us, or -1; `changed` must be held."""
        seat = self.seats[index]
        if seat is None or seat.incarnation != incarnation:
            return -1
        to, number = seat.offers.get(self.place.index, ("", -1))
        return number if to == self.incarnation else -1

    def advertise(self, heartbeat: bytes) -> None:
        """Puts our heartbeat where all see it, soon."""
        with self.changed:
            self._heartbeat = heartbeat
            self._say("heartbeat")

    def look(self) -> None:
        """Looks at the store soon, however calm it is."""
        self._wake.set()

    def client(self, seconds: float = _ANSWER_SECONDS) -> Store:
        """A connection of the caller's own (one that waits holds up all who share it), whose answers take at most this
        long.

        Raises:
            OSError: nobody listens there.
            RuntimeError: the store does not answer.
        """
        host, port = self.place.host, self.place.port
        socket.create_connection(
            (host, port), _ANSWER_SECONDS
        ).close()  # the store's own client is loud where nobody listens
        store = TCPStore(host, port, is_master=False, wait_for_workers=False, timeout=timedelta(seconds=seconds))
        return PrefixStore(self._directory, store)

    def close(self, deadline: float) -> None:
        """Says the last word, and ends the thread and the store; the thread is given up at the deadline, on the
        monotonic clock.
        """
        with self.changed:
            self.closing = True
            self.changed.notify_all()
        self._wake.set()
        if self._thread.ident is not None:
            self._thread.join(max(0.0, deadline - time.monotonic()))
        self._server = None

    # ── the thread
    def _follow(self) -> None:
        while not self.closing:
            try:
                self._look_on(self.client())
            except (OSError, RuntimeError) as error:  # all errors of the store are of these kinds
                logger.debug("the store is away: %s", str(error).partition("\n")[0])
                self._wake.wait(_AGAIN_SECONDS)
                self._wake.clear()

    def _look_on(self, store: Store) -> None:
        seats = [f"seat/{index}" for index in range(self.place.size)]
        heartbeats = [f"heartbeat/{index}" for index in range(self.place.size)]
        for key in (*seats, *heartbeats):
            store.compare_set(key, "", "")  # makes it where it is missing: reading what is missing waits
        self._unsaid = set(_OURS)
        while True:
            over = self.closing
            self._write(store)
            found = store.multi_get([*seats, *heartbeats])
            self._see(found[: len(seats)], found[len(seats) :])
            if over:
                return
            self._wake.wait(_CALM_SECONDS if self._calm() else _PAIRING_SECONDS)
            self._wake.clear()

    def _write(self, store: Store) -> None:
        """Writes what is new, of one kind only what is: who leaves must not take the seat back from who came after it."""
        with self.changed:
            unsaid, self._unsaid = self._unsaid, set()
            ours = {
                "seat": Seat(self.incarnation, self._peer, dict(self._offers)).packed(),
                "heartbeat": self._heartbeat,
            }
        write: Callable[[str, bytes], None] = cast(Any, store.set)  # its stubs know of text alone
        for key in unsaid:
            write(f"{key}/{self.place.index}", ours[key])

    def _see(self, seats: Sequence[bytes], heartbeats: Sequence[bytes]) -> None:
        with self.changed:
            self.seats = [parse_seat(seat) for seat in seats]
            self.heartbeats = [heartbeat for heartbeat in heartbeats if 0 < len(heartbeat) <= HEARTBEAT_BYTES]
            own = self.seats[self.place.index]
            self._usurped = own is not None and own.incarnation != self.incarnation and "seat" not in self._unsaid
            self._answered = time.monotonic()
            self.changed.notify_all()
        self._seen()

    def _say(self, key: str) -> None:
        self._unsaid.add(key)
        self._wake.set()


def _hosted(place: Place) -> Store:
    """The store, on the loopback device alone where the world is there. Each pair keeps a connection from either side."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = hard if hard != resource.RLIM_INFINITY else 1 << 20
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(most, 1024 + 2 * place.size**2)), hard))
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1" if place.loopback else "0.0.0.0", place.port))
        listener.listen(1024)
    except OSError as error:
        listener.close()
        raise Temporary(f"the store of this world cannot listen on port {place.port}: {error}") from error
    return TCPStore(
        "127.0.0.1",
        place.port,
        is_master=True,
        wait_for_workers=False,
        timeout=timedelta(seconds=_ANSWER_SECONDS),
        master_listen_fd=listener.detach(),
        use_libuv=True,
    )
