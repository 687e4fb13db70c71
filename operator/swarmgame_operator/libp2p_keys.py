"""libp2p keys: generate a key file, and derive its peer id.

The format is that of the worker and p2pd: a protobuf of type 2 (secp256k1) and 32 bytes. Only this module and
`secrets` handle keys. Invariant: no key is shown, logged or kept.
"""

from __future__ import annotations

from coincurve import PrivateKey

from swarmgame_chain.messages import peer_id, public_key

KEY_PREFIX = bytes.fromhex("08021220")


def new_key() -> bytes:
    """Return a new key as the file that a pod mounts: 36 bytes."""
    secret: bytes = PrivateKey().secret
    return KEY_PREFIX + secret


def peer_id_of(key: bytes) -> str:
    """Return the peer id of a key file: `16Uiu2HA…`.

    Raises:
        ValueError: the key is invalid; the message says what was expected and contains nothing of the key.
    """
    if len(key) != len(KEY_PREFIX) + 32 or not key.startswith(KEY_PREFIX):
        raise ValueError(
            f"a key of {len(key)} bytes is not a secp256k1 libp2p key; "
            f"expected 36 bytes that begin with {KEY_PREFIX.hex()}"
        )
    try:
        return peer_id(public_key(key[len(KEY_PREFIX) :]))
    except ValueError:
        raise ValueError(
            "the 32 bytes of the key are no secp256k1 key; expected a number from 1 to the curve's order"
        ) from None
