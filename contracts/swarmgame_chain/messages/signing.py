"""Keys and signatures: the EIP-712 domain, signing and recovering, accounts and libp2p peer ids.

Pure functions of bytes. Signatures and digests are equal, byte for byte, to what the contract computes; the contract
accepts secp256k1 keys and 2048-bit RSA keys as proofs of a peer id.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property, lru_cache

import base58
from coincurve import PrivateKey, PublicKey
from eth_abi.abi import encode
from eth_utils.address import to_checksum_address
from eth_utils.crypto import keccak

from swarmgame_chain.errors import BadMessage

MAX_PEER_ID = 64
_SECP256K1_HEAD = bytes.fromhex("002508021221")
_RSA_HEAD = bytes.fromhex("080012a60230820122300d06092a864886f70d01010105000382010f003082010a0282010100")
_RSA_TAIL = bytes.fromhex("0203010001")
_HALF_ORDER = 0x7FFFFFFFFFFFFFFFFFFFFFFFFFFFFFFF5D576E7357A4501DDFE92F46681B20A0
_DOMAIN = keccak(text="EIP712Domain(string name,string version,uint256 chainId,address verifyingContract)")


@dataclass(frozen=True)
class Domain:
    """The contract and the chain that a signature is for."""

    chain_id: int
    contract: str

    def __post_init__(self) -> None:
        object.__setattr__(self, "contract", str(to_checksum_address(self.contract)))

    @cached_property
    def separator(self) -> bytes:
        """The result of the contract's `domainSeparator()`; 32 bytes."""
        name, version = keccak(text="SwarmCoordinator"), keccak(text="1")
        return keccak(
            encode(
                ["bytes32", "bytes32", "bytes32", "uint256", "address"],
                [_DOMAIN, name, version, self.chain_id, self.contract],
            )
        )

    def digest(self, struct: bytes) -> bytes:
        """Return the digest that is signed for a struct's hash; 32 bytes."""
        return keccak(b"\x19\x01" + self.separator + struct)


def sign(secret: bytes, digest: bytes) -> bytes:
    """Return 65 bytes: r, s, and 27 or 28. The same digest always gives the same signature (RFC 6979)."""
    signature: bytes = PrivateKey(secret).sign_recoverable(digest, hasher=None)
    return signature[:64] + bytes([27 + signature[64]])


@lru_cache(maxsize=16_384)
def recover(digest: bytes, signature: bytes) -> str | None:
    """Return the account that signed, or None where the signature is invalid. Never raises, whatever the bytes."""
    if len(signature) != 65 or signature[64] not in (27, 28) or int.from_bytes(signature[32:64]) > _HALF_ORDER:
        return None
    try:
        key = PublicKey.from_signature_and_message(signature[:64] + bytes([signature[64] - 27]), digest, hasher=None)
    except ValueError:
        return None
    return account_of(key.format(compressed=False)[1:])


@lru_cache(maxsize=4096)
def peer_id(key: bytes) -> str:
    """Return the libp2p peer id of a public key: `16Uiu2HA…` for secp256k1, `Qm…` for RSA.

    Args:
        key: 64 bytes (x, y) of secp256k1, or 256 bytes of an RSA modulus.

    Raises:
        BadMessage: it is neither.
    """
    if len(key) == 64:
        raw = _SECP256K1_HEAD + bytes([2 + (key[63] & 1)]) + key[:32]
    elif len(key) == 256 and key[0] >= 0x80:
        raw = b"\x12\x20" + hashlib.sha256(_RSA_HEAD + key + _RSA_TAIL).digest()
    else:
        raise BadMessage(
            f"a key of {len(key)} bytes cannot be proven; expected 64 of secp256k1, or 256 of an RSA modulus of 2048 "
            "bits, whose first byte is at least 0x80"
        )
    encoded: bytes = base58.b58encode(raw)
    return encoded.decode()


def is_peer_id(text: str) -> bool:
    """Return whether a text is the peer id of a secp256k1 key."""
    if len(text) > MAX_PEER_ID:
        return False
    try:
        raw: bytes = base58.b58decode(text)
    except ValueError:
        return False
    return len(raw) == len(_SECP256K1_HEAD) + 33 and raw.startswith(_SECP256K1_HEAD)


def address_of(secret: bytes) -> str:
    """Return the account of a secp256k1 key's 32 secret bytes."""
    return account_of(public_key(secret))


def public_key(secret: bytes) -> bytes:
    """Return the public key of 32 secret bytes: x and y, 64 bytes."""
    key: bytes = PrivateKey(secret).public_key.format(compressed=False)
    return key[1:]


def account_of(key: bytes) -> str:
    """Return the account of a public key (x and y, 64 bytes)."""
    return str(to_checksum_address(keccak(key)[12:]))


def is_rsa_signature(modulus: bytes, digest: bytes, signature: bytes) -> bool:
    """Return whether an RSA key signed: PKCS #1 v1.5 over SHA-256 with e = 65537, as the contract checks it."""
    if len(signature) != len(modulus):
        return False
    n = int.from_bytes(modulus)
    opened = pow(int.from_bytes(signature), 65537, n).to_bytes(len(modulus))
    hashed = hashlib.sha256(digest).digest()
    # Some libraries write the algorithm's NULL parameters, others leave them out.
    heads = ("3031300d060960864801650304020105000420", "302f300b06096086480165030402010420")
    tails = [bytes.fromhex(head) + hashed for head in heads]
    return int.from_bytes(signature) < n and any(
        opened == b"\x00\x01" + b"\xff" * (253 - len(tail)) + b"\x00" + tail for tail in tails
    )
