"""Identity: one secp256k1 key per peer, which is its libp2p identity and signs all its messages.

The key file is libp2p's own format (a protobuf: type 2, then 32 bytes), so that the p2p daemon reads the same file.
The peer id is the base58 of the identity multihash of the public key's protobuf, that is, it contains the public key:
a signature is checked with the peer id alone, without a directory. Signatures are deterministic (RFC 6979) recoverable
ECDSA over SHA-256, 65 bytes. A key file is complete or absent, and readable by its owner only.

Source: https://github.com/libp2p/specs/blob/master/peer-ids/peer-ids.md
"""

from __future__ import annotations

import ipaddress
import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from hashlib import sha256
from pathlib import Path

import base58
from coincurve import PrivateKey, PublicKey

from swarmgame.errors import BadData, writing
from swarmgame.game.state import PeerId
from swarmgame_common.sockets import EVERY_ADDRESS

SIGNATURE_BYTES = 65
_PRIVATE_HEAD = bytes.fromhex("08021220")
_PUBLIC_HEAD = bytes.fromhex("08021221")
_MULTIHASH_HEAD = bytes.fromhex("0025")
_PEER_ID_LENGTH = 64
"""Longest text that is decoded; a secp256k1 peer id has 53 characters."""


def peer_id_of(public_key: bytes) -> PeerId:
    """Return the libp2p peer id of a compressed secp256k1 public key (33 bytes)."""
    encoded: bytes = base58.b58encode(_MULTIHASH_HEAD + _PUBLIC_HEAD + public_key)
    return encoded.decode()


@lru_cache(maxsize=4096)
def public_key_of(peer: PeerId) -> bytes | None:
    """Return the compressed public key inside a peer id, or None if the id is not one of a secp256k1 key."""
    if len(peer) > _PEER_ID_LENGTH:
        return None
    try:
        raw: bytes = base58.b58decode(peer)
    except ValueError:
        return None
    head = _MULTIHASH_HEAD + _PUBLIC_HEAD
    if len(raw) != len(head) + 33 or not raw.startswith(head):
        return None
    return raw[len(head) :]


def verify(peer: PeerId, message: bytes, signature: bytes) -> bool:
    """Whether `peer` signed `message`. Never raises, whatever the bytes."""
    expected = public_key_of(peer)
    return expected is not None and verify_with(expected, message, signature)


def verify_with(public_key: bytes, message: bytes, signature: bytes) -> bool:
    """Whether the owner of a compressed public key signed `message`. Never raises, whatever the bytes."""
    if len(signature) != SIGNATURE_BYTES:
        return False
    try:
        return bool(PublicKey.from_signature_and_message(signature, message).format() == public_key)
    except ValueError:
        return False


@dataclass(frozen=True, slots=True)
class Identity:
    """A peer's key.

    Args:
        secret: 32 bytes, a valid secp256k1 scalar; never printed.
    """

    secret: bytes = field(repr=False)
    peer: PeerId = field(init=False)
    _key: PrivateKey = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        key = PrivateKey(self.secret)
        object.__setattr__(self, "_key", key)
        object.__setattr__(self, "peer", peer_id_of(key.public_key.format()))

    @property
    def public_key(self) -> bytes:
        """Compressed, 33 bytes."""
        encoded: bytes = self._key.public_key.format()
        return encoded

    @classmethod
    def generate(cls) -> Identity:
        return cls(PrivateKey().secret)

    @classmethod
    def named(cls, name: str) -> Identity:
        """Return the key of a test peer: a function of its name, and so not secret."""
        return cls(sha256(b"swarmgame-test-identity" + name.encode()).digest())

    @classmethod
    def load(cls, path: Path) -> Identity:
        """Read a key file.

        Raises:
            BadData: the file is not a secp256k1 libp2p key.
            FileNotFoundError: there is none.
        """
        data = path.read_bytes()
        if len(data) != len(_PRIVATE_HEAD) + 32 or not data.startswith(_PRIVATE_HEAD):
            raise BadData(
                f"{path} is not a secp256k1 libp2p key (36 bytes that begin with 08021220); "
                "remove it, and a new one is created"
            )
        try:
            return cls(data[len(_PRIVATE_HEAD) :])
        except ValueError as error:
            raise BadData(f"{path} holds no valid secp256k1 key: {error}") from error

    @classmethod
    def load_or_create(cls, path: Path, create: Callable[[], Identity] | None = None) -> Identity:
        """Read a key file, or create one if there is none. Two callers at once get the same key.

        Args:
            create: makes the new key; by default a random one.

        Raises:
            BadData: the file is not a secp256k1 libp2p key.
            NotWritable: the disk is full, or the folder is read-only.
        """
        try:
            return cls.load(path)
        except FileNotFoundError:
            pass
        identity = create() if create is not None else cls.generate()
        with writing(path):
            return identity._write(path)

    def _write(self, path: Path) -> Identity:
        path.parent.mkdir(parents=True, exist_ok=True)
        # mkstemp gives mode 0600; link, unlike rename, never replaces a key that another process has just created.
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(_PRIVATE_HEAD + self.secret)
                file.flush()
                os.fsync(file.fileno())
            try:
                os.link(temporary, path)
            except FileExistsError:
                return Identity.load(path)
        finally:
            os.unlink(temporary)
        return self

    def sign(self, message: bytes) -> bytes:
        """Return 65 bytes: r, s, recovery id. The same message always gives the same signature."""
        signature: bytes = self._key.sign_recoverable(message)
        return signature


def listen_addresses(port: int, host: str) -> list[str]:
    """Return the multiaddrs to listen on: two where the host stands for every address of both families. The daemon
    starts where it can listen on one of them, so that machines without IPv6 need no other.
    """
    if host == EVERY_ADDRESS:
        return [f"/ip4/0.0.0.0/tcp/{port}", f"/ip6/::/tcp/{port}"]
    return [f"/{'ip6' if ':' in host else 'ip4'}/{host}/tcp/{port}"]


def dial_address(peer: PeerId, port: int, host: str = "127.0.0.1") -> str:
    """Return the multiaddr at which others reach a peer: an IP address or a DNS name, a port and the peer id."""
    parts = host.split(".")
    kind = "ip4" if len(parts) == 4 and all(part.isdigit() for part in parts) else "ip6" if ":" in host else "dns4"
    return f"/{kind}/{host}/tcp/{port}/p2p/{peer}"


def split_address(address: str) -> tuple[str, PeerId]:
    """Split a dial address into its transport part and the peer id.

    Raises:
        ValueError: it does not end in `/p2p/<peer id>`.
    """
    transport, separator, peer = address.rpartition("/p2p/")
    if not separator or not peer or "/" in peer or not transport.startswith("/"):
        raise ValueError(
            f"{address!r} is not a peer's address; expected /ip4/HOST/tcp/PORT/p2p/PEER or /dns4/HOST/tcp/PORT/p2p/PEER"
        )
    return transport, peer


def host_of(address: str) -> str:
    """Return the host of a multiaddr; empty where it names none.

    Of an IPv6 address it is the network of 64 bits, which is one customer's.
    """
    parts = address.split("/")
    if len(parts) < 3 or parts[1] not in ("ip4", "ip6"):
        return ""
    try:
        if parts[1] == "ip4":
            return str(ipaddress.IPv4Address(parts[2]))
        return str(ipaddress.IPv6Network((parts[2].partition("%")[0], 64), strict=False))
    except ValueError:
        return ""
