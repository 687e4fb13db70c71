"""Seeds by hash: every random stream of a game has a seed of its own, derived from its purpose.

Reasoning-gym uses `Random(seed + index)`, so adjacent seeds share questions; hashed seeds do not. Invariant: a seed
depends only on its parts, not on the machine, the process or the order of calls.
"""

from __future__ import annotations

import hashlib

SEED_BITS = 62
"""Seeds fit a signed 64-bit integer, also after an index is added."""


def derive_seed(*parts: str | int) -> int:
    """Return a seed in [0, 2**62) from an unambiguous encoding of the parts."""
    digest = hashlib.blake2b(digest_size=8, person=b"swarmgame-seed")
    for part in parts:
        encoded = f"{type(part).__name__}:{part}".encode()
        digest.update(len(encoded).to_bytes(8, "little") + encoded)
    return int.from_bytes(digest.digest(), "little") >> (64 - SEED_BITS)
