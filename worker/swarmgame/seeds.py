"""Seeds by hash: every random stream of a game has a seed of its own, derived from what it is for.

Reasoning-gym items use `Random(seed + index)`, so neighbouring seeds share questions; a hash keeps all streams apart.
Invariant: a seed depends on its parts alone, never on the machine, the process or the order of calls.
"""

from __future__ import annotations

import hashlib

SEED_BITS = 62
"""Seeds fit a signed 64-bit integer with room to add an index."""


def derive_seed(*parts: str | int) -> int:
    """A seed in [0, 2**62) from an unambiguous encoding of the parts."""
    digest = hashlib.blake2b(digest_size=8, person=b"swarmgame-seed")
    for part in parts:
        encoded = f"{type(part).__name__}:{part}".encode()
        digest.update(len(encoded).to_bytes(8, "little") + encoded)
    return int.from_bytes(digest.digest(), "little") >> (64 - SEED_BITS)
