"""The store: bodies that we serve, by their hash.

Our own are kept for as many rounds as others may want them; those fetched from others are kept while there is room, so that a body outlives
its author's connection. Invariant: a body is filed under its own SHA-256, and our own are never pushed out by those of others.
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
        self._cached: OrderedDict[bytes, bytes] = OrderedDict()
        self._cached_bytes = 0

    def keep(self, round: int, name: bytes, body: bytes) -> None:
        """Files one of our own."""
        self._own[name] = (round, body)

    def cache(self, name: bytes, body: bytes) -> None:
        """Files one of somebody else's whose hash has been checked; the oldest make room."""
        if name in self._own or name in self._cached or len(body) > self.cache_bytes:
            return
        self._cached[name] = body
        self._cached_bytes += len(body)
        while self._cached_bytes > self.cache_bytes:
            _, oldest = self._cached.popitem(last=False)
            self._cached_bytes -= len(oldest)

    def get(self, name: bytes) -> bytes | None:
        own = self._own.get(name)
        return own[1] if own else self._cached.get(name)

    def forget_before(self, round: int) -> None:
        """Drops our own bodies of earlier rounds."""
        for name in [name for name, (spoken, _) in self._own.items() if spoken < round]:
            del self._own[name]
