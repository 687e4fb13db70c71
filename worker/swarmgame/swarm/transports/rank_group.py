"""A group of ranks: a TCPStore, where the ranks meet and wait for each other, and one gloo process group.

Rank 0 hosts the store. A wait on the store can be interrupted and a collective cannot, so the ranks wait on the store
until all have come to an exchange, and then broadcast their payloads one after another: a collective takes no longer
than a transfer. A rank that has left or was started again is marked in the store. Only bytes are exchanged; values of
the store are checked before use.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import socket
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import msgpack
import torch
from torch import distributed

from swarmgame.errors import BadUsage, Temporary
from swarmgame.game.sources import Sources
from swarmgame.game.state import PeerId
from swarmgame.swarm.messages import CONTRIBUTION_BYTES, INDEX_BYTES
from swarmgame.swarm.transport import Traffic
from swarmgame_common.sockets import EVERY_ADDRESS, host_and_port, listening_socket

MAX_BYTES = CONTRIBUTION_BYTES + INDEX_BYTES + (1 << 20)
"""Largest payload that is received."""
TRANSFER_SECONDS = 60.0
RESUME = "all peers have to be started again, and resume from their checkpoints"
_STORE_SECONDS, _RETRY_SECONDS, _LEAVE_SECONDS = 10.0, 0.2, 5.0
_LEFT, _RESTARTED = "has left", "was started again"
_MIN_PAUSE, _MAX_PAUSE = 0.0005, 0.05

Position = tuple[int, int]
"""(round, stage)"""


@dataclass(frozen=True)
class RankAddress:
    """A peer's rank, and the address of the group's store.

    Args:
        rank: from 0; rank 0 hosts the store.
        size: number of peers.
        host, port: of the store.
    """

    rank: int
    size: int
    host: str
    port: int

    @property
    def loopback(self) -> bool:
        """Whether the group is on one machine."""
        return self.host in ("localhost", "::1") or self.host.startswith("127.")


@dataclass(frozen=True)
class Exchanged:
    """The result of an exchange.

    Args:
        position: the lowest of all ranks, whose payloads were exchanged.
        positions: of each rank.
        payloads: by rank; without ranks that have none.
        too_large: ranks whose payload was not transferred, because it is too large.
    """

    position: Position
    positions: Sequence[Position]
    payloads: Mapping[int, bytes]
    too_large: frozenset[int]


class RankGroup:
    """One rank's connection to its group.

    Args:
        run: the keys of each run in the store are separate.
        address: our rank, and where the group meets.
        peer: our peer id.
        sources: of our game.
    """

    def __init__(self, run: str, address: RankAddress, peer: PeerId, sources: Sources | None = None) -> None:
        self.run, self.address, self.peer = run, address, peer
        self.sources = sources or Sources()
        self.others = [rank for rank in range(address.size) if rank != address.rank]
        self.peers: Sequence[PeerId] = ()
        """The peer ids by rank; empty before joining and after leaving."""
        self.traffic = Traffic()
        """Payloads; what we broadcast counts once, whatever the number of receivers."""
        self._number = 0
        self._server: Any = None
        self._store: Any = None
        self._group: Any = None

    # ── joining and leaving
    def join(self, timeout_seconds: float) -> None:
        """Wait for all ranks, and connect to them.

        Raises:
            Temporary: rank 0 or another rank does not come, or the port is taken.
            BadUsage: two ranks have the same peer id.
        """
        deadline = time.monotonic() + timeout_seconds
        if self.address.rank == 0:
            self._server = _host_store(self.address)
        peers: Sequence[PeerId] = ()
        while not peers:
            try:
                peers = self._meet(deadline, timeout_seconds)
            except (OSError, RuntimeError) as error:  # there is no store yet, or an old one that is closing
                if time.monotonic() >= deadline:
                    where = host_and_port(self.address.host, self.address.port)
                    raise Temporary(
                        f"the store at {where}, which peer 0 hosts, did not answer within {timeout_seconds:g} s"
                    ) from error
                time.sleep(_RETRY_SECONDS)
        if self.address.loopback:
            os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
        store = distributed.PrefixStore("gloo", self._store)  # type: ignore[attr-defined]
        rank, size, timeout = self.address.rank, self.address.size, timedelta(seconds=TRANSFER_SECONDS)
        try:
            self._group = distributed.ProcessGroupGloo(store, rank, size, timeout)
        except RuntimeError as error:
            raise Temporary(f"the peers could not connect ({first_line(error)}); {RESUME}") from error
        self.peers = peers

    def _meet(self, deadline: float, timeout_seconds: float) -> Sequence[PeerId]:
        """Register at the store, wait for all ranks, and return their peer ids."""
        rank, size = self.address.rank, self.address.size
        prefix, store = f"swarmgame/2/{self.run}/{size}", self._server or _open_store(self.address)
        self._store = distributed.PrefixStore(prefix, store)  # type: ignore[attr-defined]
        token = secrets.token_hex(8)
        self.set_position((0, 0))
        self._set(f"sources/{rank}", self.sources.packed())
        self._set(f"rank/{rank}", [token, self.peer])
        keys = [f"rank/{each}" for each in range(size)]
        for pause in _pauses():
            if self._store.check(keys if rank == 0 else ["group"]):
                break
            if time.monotonic() >= deadline:
                absent = [each for each, key in enumerate(keys) if not self._store.check([key])]
                raise Temporary(f"{_names(absent)} did not join run {self.run!r} within {timeout_seconds:g} s")
            time.sleep(pause)
        if rank == 0:
            self._set("group", [self._get(key) for key in keys])
        with _checked("group"):
            tokens, peers = zip(*self._get("group"), strict=True)
        if tokens[rank] != token:
            # The group was formed before this process started: the others have to start again too.
            self._set(f"left/{rank}", _RESTARTED)
            raise ConnectionError("the store is that of an earlier group")
        if len(set(peers)) < size:
            raise BadUsage(f"two peers of run {self.run!r} have the same key; each needs its own")
        return peers

    def leave(self) -> None:
        """Mark ourselves as gone and close. Rank 0 keeps the store open until the others have left, at most 5 s."""
        joined, self.peers = bool(self.peers), ()
        with contextlib.suppress(RuntimeError):
            if joined:
                self._set(f"left/{self.address.rank}", _LEFT)
                deadline = time.monotonic() + _LEAVE_SECONDS
                waiting = [f"left/{rank}" for rank in self.others] if self._server is not None else []
                while waiting and time.monotonic() < deadline and not self._store.check(waiting):
                    time.sleep(_MAX_PAUSE)
        self._group = self._store = self._server = None

    # ── positions
    def set_position(self, position: Position) -> None:
        """Tell the others how far we are."""
        self._set(f"position/{self.address.rank}", position)

    def position(self, rank: int) -> Position:
        """Return how far a rank is."""
        with _checked(key := f"position/{rank}"):
            round, stage = self._get(key)
            return int(round), int(stage)

    def sources_of(self, rank: int) -> Sources:
        """Return the sources of a rank's game; unknown ones where it does not name them."""
        if not self._store.check([key := f"sources/{rank}"]):
            return Sources()
        with _checked(key):
            return Sources.of_packed([bytes(each) for each in self._get(key)])

    def has_left(self, rank: int) -> bool:
        return bool(self._store.check([f"left/{rank}"]))

    def raise_left(self, rank: int) -> None:
        """Raise `Temporary` for a rank that has left."""
        raise Temporary(f"peer {rank} {self._get(f'left/{rank}')}; {RESUME}")

    def waits_behind(self, position: Position) -> bool:
        """Whether a rank that is behind `position` waits for the others to come to its exchange."""
        waiting = [key for key in self._exchange_keys() if self._store.check([key])]
        return any(self._header(key)[0] < position for key in waiting)

    # ── exchanges
    def exchange(
        self,
        position: Position,
        published: Mapping[Position, bytes],
        deadline_seconds: float,
        stopped: Callable[[], bool] = lambda: False,
    ) -> Exchanged | None:
        """Exchange the payloads for the lowest position of all ranks. Return None if stopped.

        Args:
            position: ours.
            published: our payloads, by position.

        Raises:
            Temporary: a rank has left, or did not come in time.
            RuntimeError: the store or a connection is gone.
        """
        if self._group is None:
            raise RuntimeError("the connections were closed when an exchange failed")
        keys = self._exchange_keys()
        self._set(keys[self.address.rank], [position, [[*each, len(payload)] for each, payload in published.items()]])
        deadline = time.monotonic() + deadline_seconds
        for pause in _pauses():
            if self._store.check(keys):
                break
            if stopped():
                return None
            left = next(filter(self.has_left, self.others), None)
            if left is not None:
                # If all peers are being stopped, our turn comes within seconds, and then we write a checkpoint.
                grace = _LEAVE_SECONDS if self._get(f"left/{left}") == _LEFT else 0.0
                deadline = min(deadline, time.monotonic() + grace)
            if time.monotonic() >= deadline:
                if left is not None:
                    self.raise_left(left)
                late = [rank for rank, key in enumerate(keys) if not self._store.check([key])]
                where = f"round {position[0]}, stage {position[1]}"
                raise Temporary(f"{_names(late)} did not reach {where} within {deadline_seconds:g} s; {RESUME}")
            time.sleep(pause)
        headers = [self._header(key) for key in keys]
        if self._number >= 2:  # all ranks have read the headers before the last
            self._store.delete_key(f"exchange/{self._number - 2}/{self.address.rank}")
        self._number += 1
        positions = [position for position, _ in headers]
        lowest = min(positions)
        sizes = [sizes.get(lowest, 0) for _, sizes in headers]
        try:
            # In the order of ranks, on every rank, and no memory for what is too large.
            payloads = {
                rank: self._broadcast(rank, size, published, lowest)
                for rank, size in enumerate(sizes)
                if 0 < size <= MAX_BYTES
            }
        except RuntimeError:
            # Another rank may wait for us in a transfer that never comes; it sees at once that the connection closes.
            self._group = None
            raise
        return Exchanged(lowest, positions, payloads, frozenset(r for r, size in enumerate(sizes) if size > MAX_BYTES))

    def _broadcast(self, rank: int, size: int, published: Mapping[Position, bytes], position: Position) -> bytes:
        if rank == self.address.rank:
            payload = published[position]
            self._group.broadcast(torch.frombuffer(bytearray(payload), dtype=torch.uint8), rank).wait()
            self.traffic.sent(size)
            return payload
        buffer = torch.empty(size, dtype=torch.uint8)
        self._group.broadcast(buffer, rank).wait()
        self.traffic.received(size)
        return buffer.numpy().tobytes()

    def _exchange_keys(self) -> list[str]:
        return [f"exchange/{self._number}/{rank}" for rank in range(self.address.size)]

    def _header(self, key: str) -> tuple[Position, Mapping[Position, int]]:
        """Return what a rank brings to an exchange: its position, and the sizes of what it has published."""
        with _checked(key):
            (round, stage), sizes = self._get(key)
            return (int(round), int(stage)), {(int(each[0]), int(each[1])): int(each[2]) for each in sizes}

    # ── the store
    def _set(self, key: str, value: Any) -> None:
        self._store.set(key, msgpack.packb(value))

    def _get(self, key: str) -> Any:
        with _checked(key):
            return msgpack.unpackb(self._store.get(key), max_map_len=0, max_ext_len=0)


@contextlib.contextmanager
def _checked(key: str) -> Iterator[None]:
    """Raise RuntimeError, like a store that is gone, if a value of the store is invalid."""
    try:
        yield
    except (TypeError, ValueError, IndexError, msgpack.UnpackException) as error:
        raise RuntimeError(f"the store holds an invalid value of {key}") from error


def _host_store(address: RankAddress) -> Any:
    """Return the store of rank 0, bound to the loopback interface if the group is on one machine."""
    own = "::1" if address.host == "::1" else "127.0.0.1"
    try:
        listener = listening_socket(own if address.loopback else EVERY_ADDRESS, address.port, backlog=1024)
    except OSError as error:
        raise Temporary(f"the store cannot listen on port {address.port}: {error}") from error
    return _store(own, address.port, is_master=True, master_listen_fd=listener.detach())


def _open_store(address: RankAddress) -> Any:
    # The store's own client prints a stack trace if the port is closed.
    socket.create_connection((address.host, address.port), _STORE_SECONDS).close()
    return _store(address.host, address.port, is_master=False)


def _store(host: str, port: int, **options: Any) -> Any:
    return distributed.TCPStore(  # type: ignore[attr-defined]
        host, port, wait_for_workers=False, timeout=timedelta(seconds=_STORE_SECONDS), **options
    )


def _pauses() -> Iterator[float]:
    """Yield the pauses of a wait: a tenth of the time waited so far, within bounds."""
    began = time.monotonic()
    while True:
        yield min(_MAX_PAUSE, max(_MIN_PAUSE, (time.monotonic() - began) / 10))


def _names(ranks: Sequence[int]) -> str:
    return f"peer{'s' if len(ranks) > 1 else ''} {', '.join(map(str, ranks))}"


def first_line(error: Exception) -> str:
    """Return the first line of an error, which torch follows by a stack trace."""
    return str(error).strip().partition("\n")[0] or type(error).__name__
