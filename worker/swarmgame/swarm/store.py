"""The store: bodies that we serve, by their hash.

All are kept for as many rounds as others may want them; those fetched from others while there is room, so that a body
outlives its author's connection. Invariant: a body is filed under its own SHA-256, and our own are never pushed out by
those of others.
"""

from __future__ import annotations

from collections import OrderedDict

CACHE_BYTES = 64 << 20


class Store:
    """Bodies by SHA-256.

    Args:
        cache_bytes: room for bodies of others.
    """

    def __init__(self, cache_bytes: int = CACHE_BYTES) -> None:
        self.cache_bytes = cache_bytes
        self._own: dict[bytes, tuple[int, bytes]] = {}
        self._cached: OrderedDict[bytes, tuple[int, bytes]] = OrderedDict()
        self._cached_bytes = 0

    def keep(self, round: int, name: bytes, body: bytes) -> None:
        """Files one of our own."""
        self._own[name] = (round, body)

    def cache(self, round: int, name: bytes, body: bytes) -> None:
        """Files one of somebody else's whose hash has been checked; the oldest make room."""
        if name in self._own or name in self._cached or len(body) > self.cache_bytes:
            return
        self._cached[name] = (round, body)
        self._cached_bytes += len(body)
        while self._cached_bytes > self.cache_bytes:
            self._drop(next(iter(self._cached)))

    def get(self, name: bytes) -> bytes | None:
        found = self._own.get(name) or self._cached.get(name)
        return found[1] if found else None

    def forget_before(self, round: int) -> None:
        """Drops the bodies of earlier rounds, our own and those of others."""
        for name in [name for name, (spoken, _) in self._own.items() if spoken < round]:
            del self._own[name]
        for name in [name for name, (spoken, _) in self._cached.items() if spoken < round]:
            self._drop(name)

    def _drop(self, name: bytes) -> None:
        _, body = self._cached.pop(name)
        self._cached_bytes -= len(body)
