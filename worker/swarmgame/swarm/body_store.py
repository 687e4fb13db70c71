"""The bodies that a peer serves, by their SHA-256.

A peer's own bodies are kept for as many rounds as other peers may want them. Bodies fetched from others are kept while
there is space, so that a body stays available when its author is offline. A remote body never displaces an own one.
"""

from __future__ import annotations

from collections import OrderedDict

CACHE_BYTES = 64 << 20


class BodyStore:
    """Bodies by SHA-256.

    Args:
        cache_bytes: space for bodies of other peers.
    """

    def __init__(self, cache_bytes: int = CACHE_BYTES) -> None:
        self.cache_bytes = cache_bytes
        self._own: dict[bytes, tuple[int, bytes]] = {}
        self._cached: OrderedDict[bytes, tuple[int, bytes]] = OrderedDict()
        self._cached_bytes = 0

    def keep(self, round: int, name: bytes, body: bytes) -> None:
        """Add one of our own bodies."""
        self._own[name] = (round, body)

    def cache(self, round: int, name: bytes, body: bytes) -> None:
        """Add a remote body whose hash has been checked, and evict the oldest ones if there is no space."""
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
        """Drop the bodies of earlier rounds, own and remote."""
        for name in [name for name, (published, _) in self._own.items() if published < round]:
            del self._own[name]
        for name in [name for name, (published, _) in self._cached.items() if published < round]:
            self._drop(name)

    def _drop(self, name: bytes) -> None:
        _, body = self._cached.pop(name)
        self._cached_bytes -= len(body)
