"""What is signed: registrations, commits and reports, as EIP-712, and the peer id that a key stands for.

A registration is signed by the libp2p key itself, so it proves the peer id; commits and reports are signed by the
signer that the registration names. All three may be carried by anyone. Pure: no network; the only randomness is a
report's salt. Invariant: `digest` is, byte for byte, what the contract hashes, and a message's `id` is the same
wherever it is made.
"""

from __future__ import annotations

import hashlib
import secrets
from dataclasses import dataclass
from functools import cached_property, lru_cache

import base58
from coincurve import PrivateKey, PublicKey
from eth_abi.abi import encode
from eth_utils.address import to_checksum_address
from eth_utils.crypto import keccak

from swarmgame_chain.errors import BadMessage

MAX_PEER_ID = 64
MAX_VOTES = 8
_SECP256K1_HEAD = bytes.fromhex("002508021221")
_RSA_HEAD = bytes.fromhex("080012a60230820122300d06092a864886f70d01010105000382010f003082010a0282010100")
_RSA_TAIL = bytes.fromhex("0203010001")
_HALF_ORDER = 0x7FFFFFFFFFFFFFFFFFFFFFFFFFFFFFFF5D576E7357A4501DDFE92F46681B20A0
_DOMAIN = keccak(text="EIP712Domain(string name,string version,uint256 chainId,address verifyingContract)")
_REGISTER_PEER = keccak(text="RegisterPeer(address owner,address signer,uint256 deadline)")
_REPORT = keccak(text="Report(string peerId,uint256 round,uint256 stage,int256 reward,bytes32 winners)")
_COMMIT = keccak(text="Commit(string peerId,uint256 round,bytes32 seal)")


@dataclass(frozen=True)
class Domain:
    """Which contract on which chain a signature is for."""

    chain_id: int
    contract: str

    def __post_init__(self) -> None:
        object.__setattr__(self, "contract", str(to_checksum_address(self.contract)))

    @cached_property
    def separator(self) -> bytes:
        """What the contract's `domainSeparator()` answers; 32 bytes."""
        name, version = keccak(text="SwarmCoordinator"), keccak(text="1")
        return keccak(
            encode(
                ["bytes32", "bytes32", "bytes32", "uint256", "address"],
                [_DOMAIN, name, version, self.chain_id, self.contract],
            )
        )

    def digest(self, struct: bytes) -> bytes:
        """What is signed of a struct's hash; 32 bytes."""
        return keccak(b"\x19\x01" + self.separator + struct)


@dataclass(frozen=True)
class Registration:
    """A peer's proof of its id. `key`: 64 bytes of secp256k1 (x, y), or 256 bytes of an RSA modulus."""

    owner: str
    signer: str
    deadline: int
    key: bytes
    signature: bytes

    @cached_property
    def peer(self) -> str:
        """The peer id that the key stands for.

        Raises:
            BadMessage: it is no key that can be proven.
        """
        return peer_id(self.key)

    @lru_cache(maxsize=8_192)  # noqa: B019  messages are small and the cache is bounded
    def digest(self, domain: Domain) -> bytes:
        fields = encode(
            ["bytes32", "address", "address", "uint256"], [_REGISTER_PEER, self.owner, self.signer, self.deadline]
        )
        return domain.digest(keccak(fields))

    def entry(self) -> tuple[object, ...]:
        return (self.owner, self.signer, self.deadline, self.key, self.signature)


@dataclass(frozen=True)
class Commit:
    """The seal of a report, sent in its round; opened in the next."""

    peer: str
    round: int
    seal: bytes
    signature: bytes

    @lru_cache(maxsize=8_192)  # noqa: B019
    def digest(self, domain: Domain) -> bytes:
        return domain.digest(
            keccak(
                encode(
                    ["bytes32"] * 2 + ["uint256", "bytes32"], [_COMMIT, keccak(text=self.peer), self.round, self.seal]
                )
            )
        )

    def entry(self) -> tuple[object, ...]:
        return (self.peer, self.round, self.seal, self.signature)


@dataclass(frozen=True)
class Report:
    """What a peer says of a round: its mean reward, as an integer, and the peers whose groups it learned most from."""

    peer: str
    round: int
    reward: int
    winners: tuple[str, ...]
    salt: bytes
    signature: bytes

    @property
    def votes(self) -> bytes:
        """The hash of the winners that is signed and sealed; 32 bytes."""
        return keccak(encode(["string[]"], [list(self.winners)]))

    @property
    def seal(self) -> bytes:
        """What is committed one round ahead; 32 bytes."""
        values = [self.peer, self.round, self.reward, self.votes, self.salt]
        return keccak(encode(["string", "uint256", "int256", "bytes32", "bytes32"], values))

    @lru_cache(maxsize=8_192)  # noqa: B019
    def digest(self, domain: Domain) -> bytes:
        values = [_REPORT, keccak(text=self.peer), self.round, 0, self.reward, self.votes]
        return domain.digest(keccak(encode(["bytes32", "bytes32", "uint256", "uint256", "int256", "bytes32"], values)))

    def entry(self) -> tuple[object, ...]:
        return (self.peer, self.round, self.reward, list(self.winners), self.salt, self.signature)


SignedMessage = Registration | Commit | Report


def message_id(message: SignedMessage, domain: Domain) -> str:
    """A name for the message, 32 hexadecimal digits; two different messages have two."""
    kind = type(message).__name__.encode()
    return hashlib.sha256(
        b"|".join((kind, message.peer.encode(), message.digest(domain), message.signature))
    ).hexdigest()[:32]


def sign_registration(
    domain: Domain, identity: bytes, *, deadline: int, owner: str = "", signer: str = ""
) -> Registration:
    """A peer's registration, proven by its libp2p key.

    Args:
        identity: the key's 32 secret bytes.
        deadline: unix seconds until which it may be carried; a later one replaces an earlier one.
        owner: the account that the peer belongs to; the key's own by default.
        signer: whose signature reports will bear; the key's own by default.
    """
    own = address_of(identity)
    key = public_key(identity)
    unsigned = Registration(owner or own, signer or own, deadline, key, b"")
    return Registration(unsigned.owner, unsigned.signer, deadline, key, sign(identity, unsigned.digest(domain)))


def sign_report(
    domain: Domain, signer: bytes, *, peer: str, round: int, reward: int, winners: tuple[str, ...] = ()
) -> Report:
    """A peer's report of a round, with a fresh salt.

    Args:
        signer: 32 secret bytes of the key that the registration named.
        winners: at most 8 other peers.

    Raises:
        BadMessage: more than 8 winners, or one twice.
    """
    if len(winners) > MAX_VOTES or len(set(winners)) != len(winners):
        raise BadMessage(f"a report names {len(winners)} winners; expected at most {MAX_VOTES}, each once")
    salt = secrets.token_bytes(32)
    unsigned = Report(peer, round, reward, winners, salt, b"")
    return Report(peer, round, reward, winners, salt, sign(signer, unsigned.digest(domain)))


def sign_commit(domain: Domain, signer: bytes, report: Report) -> Commit:
    """The commit of a report: its seal, sent in the report's own round."""
    unsigned = Commit(report.peer, report.round, report.seal, b"")
    return Commit(report.peer, report.round, report.seal, sign(signer, unsigned.digest(domain)))


def sign(secret: bytes, digest: bytes) -> bytes:
    """65 bytes: r, s, 27 or 28. The same digest always gives the same signature (RFC 6979)."""
    signature: bytes = PrivateKey(secret).sign_recoverable(digest, hasher=None)
    return signature[:64] + bytes([27 + signature[64]])


@lru_cache(maxsize=16_384)
def recover(digest: bytes, signature: bytes) -> str | None:
    """The account that signed, or None where the signature is none. Never raises, whatever the bytes."""
    if len(signature) != 65 or signature[64] not in (27, 28) or int.from_bytes(signature[32:64]) > _HALF_ORDER:
        return None
    try:
        key = PublicKey.from_signature_and_message(signature[:64] + bytes([signature[64] - 27]), digest, hasher=None)
    except ValueError:
        return None
    return _address(key.format(compressed=False)[1:])


def proves(registration: Registration, domain: Domain) -> bool:
    """Whether the registration's key signed it."""
    digest = registration.digest(domain)
    if len(registration.key) == 256:
        return _rsa_signed(registration.key, digest, registration.signature)
    return recover(digest, registration.signature) == _address(registration.key)


@lru_cache(maxsize=4096)
def peer_id(key: bytes) -> str:
    """The libp2p peer id of a public key: `16Uiu2HA…` for secp256k1 (64 bytes: x, y), `Qm…` for an RSA modulus (256
    bytes).

    Raises:
        BadMessage: it is neither.
    """
    if len(key) == 64:
        raw = _SECP256K1_HEAD + bytes([2 + (key[63] & 1)]) + key[:32]
    elif len(key) == 256 and key[0] >= 0x80:
        raw = b"\x12\x20" + hashlib.sha256(_RSA_HEAD + key + _RSA_TAIL).digest()
    else:
        raise BadMessage(
            f"a key of {len(key)} bytes cannot be proven; expected 64 of secp256k1 or 256 of a 2048-bit RSA modulus"
        )
    encoded: bytes = base58.b58encode(raw)
    return encoded.decode()


def address_of(secret: bytes) -> str:
    """The account of a secp256k1 key's 32 secret bytes."""
    return _address(public_key(secret))


def public_key(secret: bytes) -> bytes:
    """The public key of 32 secret bytes: x and y, 64 bytes."""
    key: bytes = PrivateKey(secret).public_key.format(compressed=False)
    return key[1:]


def _address(key: bytes) -> str:
    return str(to_checksum_address(keccak(key)[12:]))


def _rsa_signed(modulus: bytes, digest: bytes, signature: bytes) -> bool:
    # PKCS #1 v1.5 over SHA-256 with e = 65537, as the contract checks it; both spellings of the algorithm's parameters.
    if len(signature) != len(modulus):
        return False
    n = int.from_bytes(modulus)
    opened = pow(int.from_bytes(signature), 65537, n).to_bytes(len(modulus))
    hashed = hashlib.sha256(digest).digest()
    heads = ("3031300d060960864801650304020105000420", "302f300b06096086480165030402010420")
    tails = [bytes.fromhex(head) + hashed for head in heads]
    return int.from_bytes(signature) < n and any(
        opened == b"\x00\x01" + b"\xff" * (253 - len(tail)) + b"\x00" + tail for tail in tails
    )
