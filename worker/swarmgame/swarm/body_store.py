"""The bodies that a peer serves, by their SHA-256.

A peer's own bodies are kept for as many rounds as other peers may want them. Bodies fetched from others are kept while
there is space, so that a body stays available when its author is offline. A remote body never displaces an own one, nor
does that of a peer that does not count displace one of a peer that does.
"""

from __future__ import annotations

from collections import OrderedDict

CACHE_BYTES = 64 << 20
OTHERS_CACHE_BYTES = 8 << 20


class BodyStore:
    """Bodies by SHA-256.

    Args:
        cache_bytes: space for bodies of other peers that count.
        others_cache_bytes: space for those of all others.
    """

    def __init__(self, cache_bytes: int = CACHE_BYTES, others_cache_bytes: int = OTHERS_CACHE_BYTES) -> None:
        self._own: dict[bytes, tuple[int, bytes]] = {}
        self._caches = {True: _Cache(cache_bytes), False: _Cache(others_cache_bytes)}

    def keep(self, round: int, name: bytes, body: bytes) -> None:
        """Add one of our own bodies."""
        self._own[name] = (round, body)

    def cache(self, round: int, name: bytes, body: bytes, *, counts: bool = True) -> None:
        """Add a remote body whose hash has been checked, and evict the oldest ones if there is no space.

        Args:
            counts: whether its author counts.
        """
        if self.get(name) is None:
            self._caches[counts].add(round, name, body)

    def get(self, name: bytes) -> bytes | None:
        found = self._own.get(name) or self._caches[True].bodies.get(name) or self._caches[False].bodies.get(name)
        return found[1] if found else None

    def forget_before(self, round: int) -> None:
        """Drop the bodies of earlier rounds, own and remote."""
        for name in [name for name, (published, _) in self._own.items() if published < round]:
            del self._own[name]
        for cache in self._caches.values():
            cache.forget_before(round)


class _Cache:
    """Bodies in a space of some bytes; the oldest are evicted first."""

    def __init__(self, space: int) -> None:
        self.bodies: OrderedDict[bytes, tuple[int, bytes]] = OrderedDict()
        self._space, self._used = space, 0

    def add(self, round: int, name: bytes, body: bytes) -> None:
        if len(body) > self._space:
            return
        self.bodies[name] = (round, body)
        self._used += len(body)
        while self._used > self._space:
            self._drop(next(iter(self.bodies)))

    def forget_before(self, round: int) -> None:
        for name in [name for name, (published, _) in self.bodies.items() if published < round]:
            self._drop(name)

    def _drop(self, name: bytes) -> None:
        _, body = self.bodies.pop(name)
        self._used -= len(body)
