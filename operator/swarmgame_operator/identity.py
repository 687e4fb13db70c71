"""Keys of libp2p: how they are written, and the peer id that each stands for. The only module of the operator that
touches a key.

The format is the one that the worker and p2pd read: a protobuf of type 2 (secp256k1) and 32 bytes. Invariant: no key is
shown, logged or kept.
"""

from __future__ import annotations

from coincurve import PrivateKey

from swarmgame_chain.messages import peer_id, public_key

HEAD = bytes.fromhex("08021220")


def new_key() -> bytes:
    """A new key, as the file that a pod mounts: 36 bytes."""
    secret: bytes = PrivateKey().secret
    return HEAD + secret


def peer_of(key: bytes) -> str:
    """The peer id of a key file: `16Uiu2HA…`.

    Raises:
        ValueError: it is not one; says what was expected, and nothing of the content.
    """
    if len(key) != len(HEAD) + 32 or not key.startswith(HEAD):
        raise ValueError(
            f"a key of {len(key)} bytes is not a secp256k1 libp2p key; expected 36 bytes that begin with {HEAD.hex()}"
        )
    try:
        return peer_id(public_key(key[len(HEAD) :]))
    except ValueError:
        raise ValueError(
            "the 32 bytes of the key are no secp256k1 key; expected a number from 1 to the curve's order"
        ) from None
