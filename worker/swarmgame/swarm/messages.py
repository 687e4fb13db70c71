"""Announcements and heartbeats: the small signed messages of the exchange.

An announcement names a peer's contribution to a stage: the hash (root) of an index of shards, and the index itself if
the message stays within 512 bytes; a longer index is fetched by its hash like any body. A heartbeat gives a peer's
position in the game, its addresses, an expiry time, and what tells its game and its process apart from others. Both
are signed over a domain-separated text, so that neither can stand for the other or for another run.

Pure; the input of the `parse` functions is untrusted. A parsed message is well-formed and signed by the peer that it
names; the inbox decides whether it is fresh, needed and admitted.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any, NoReturn

import msgpack

from swarmgame.game.protocol import Claim
from swarmgame.game.sources import NAMES, Sources
from swarmgame.game.state import Contribution, PeerId
from swarmgame.swarm.codec import SHARD_BYTES, DecodedShard, Limits, Malformed, Shard, encode

ANNOUNCEMENT_BYTES = 512
HEARTBEAT_BYTES = 512
INDEX_BYTES = 1 << 20
"""Longest index of shards that is fetched: about twenty thousand shards."""
CONTRIBUTION_BYTES = 256 << 20
"""Most that one peer may contribute to one stage."""
ANNOUNCEMENT_SECONDS = 7 * 86_400
"""Rounds decide what is fresh; the expiry keeps announcements of an old run of the same name from being replayed."""
_NAME_LENGTH = 64
_ADDRESSES = 4
_ADDRESS_LENGTH = 96
_DIGEST_BYTES = 8
"""Longest fingerprint, and longest id of a process."""

Verify = Callable[[PeerId, bytes, bytes], bool]
"""(peer, message, signature) → whether that peer signed it."""
Sign = Callable[[bytes], bytes]


class Rejected(Exception):
    """A message that cannot be used; `reason` is its label: `too-large`, `malformed` or `bad-signature`."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


@dataclass(frozen=True, slots=True)
class ShardEntry:
    """An author's description of one shard.

    Args:
        name: SHA-256 of its bytes.
        size: bytes as sent.
        groups: how many groups it holds.
        spread: how many of them claim a nonzero advantage.
        mean: mean claimed reward; NaN when not known.
        tokens: completion ids.
    """

    name: bytes
    size: int
    groups: int
    spread: int
    mean: float
    tokens: int


@dataclass(frozen=True, slots=True)
class Announcement:
    """The contribution of one peer to one stage, by hash.

    Args:
        expires: Unix time, seconds; a hint for caches, since rounds decide what is fresh.
        root: SHA-256 of the index.
        index_bytes: length of the index.
        index: the index itself; empty if it is too long to be inlined.
        message: the announcement as sent, to be forwarded unchanged.
    """

    peer: PeerId
    round: int
    stage: int
    expires: int
    root: bytes
    index_bytes: int
    index: bytes
    message: bytes


@dataclass(frozen=True, slots=True)
class OutboundContribution:
    """A contribution encoded and signed, ready to be published."""

    announcement: Announcement
    index: bytes
    shards: tuple[Shard, ...]


@dataclass(frozen=True, slots=True)
class Heartbeat:
    """A peer's position and addresses.

    Args:
        expires: Unix time, seconds; after it the peer counts as gone.
        addresses: multiaddrs without the peer id; may be empty.
        leaving: the peer has left.
        message: the heartbeat as sent.
        process: random bytes of the process that signed it; empty where the sender does not name it.
        sources: of its game; unknown ones where the sender does not name them.
    """

    peer: PeerId
    round: int
    stage: int
    expires: float
    addresses: tuple[str, ...]
    leaving: bool
    message: bytes
    process: bytes = b""
    sources: Sources = field(default_factory=Sources)


# ── the index of shards
def make_index(contribution: Contribution, shards: Sequence[Shard], claims: Sequence[Claim] = ()) -> bytes:
    """Return the index of a contribution's shards.

    Args:
        claims: one for each group, or none.

    Raises:
        ValueError: a different number of claims than of groups.
    """
    if claims and len(claims) != len(contribution.groups):
        raise ValueError(f"{len(claims)} claims for {len(contribution.groups)} groups; give one a group, or none")
    rows = []
    for shard in shards:
        claimed = [claims[position] for position in shard.groups] if claims else []
        means = [claim.mean for claim in claimed if math.isfinite(claim.mean)]
        mean = sum(means) / len(means) if means else None
        rows.append(
            [
                shard.name,
                len(shard.data),
                len(shard.groups),
                sum(claim.nonzero_advantage for claim in claimed),
                mean,
                shard.tokens,
            ]
        )
    packed: bytes = msgpack.packb([contribution.policy_version, rows], use_single_float=True)
    return packed


def parse_index(packed: bytes, limits: Limits | None = None) -> tuple[ShardEntry, ...]:
    """Return the shards that an index names.

    Raises:
        Rejected: it is malformed, or a shard or all of them together are larger than allowed.
    """
    limits = limits or Limits()
    rows = _list(_unpack(packed, INDEX_BYTES), 2)[1]
    entries = []
    for row in _list(rows):
        name, size, groups, spread, mean, tokens = _list(row, 6)
        if not (isinstance(name, bytes) and len(name) == 32 and (mean is None or isinstance(mean, float))):
            _malformed()
        entries.append(
            ShardEntry(
                name,
                _count(size, 1 << 40),
                _count(groups, 1 << 32),
                min(_count(spread, 1 << 32), groups),
                math.nan if mean is None else mean,
                _count(tokens, 1 << 40),
            )
        )
    sizes = [entry.size for entry in entries]
    if max(sizes, default=0) > limits.shard_bytes or sum(sizes) > CONTRIBUTION_BYTES:
        raise Rejected("too-large")
    return tuple(entries)


def check_shard(decoded: DecodedShard, run: str, announcement: Announcement, entry: ShardEntry) -> Contribution:
    """Return the contents of a shard.

    Raises:
        Malformed: they are not what the author announced.
    """
    part = decoded.contribution
    found = (decoded.run, part.peer, part.round, part.stage, len(part.groups))
    if found != (run, announcement.peer, announcement.round, announcement.stage, entry.groups):
        raise Malformed("malformed", "the body is not what was announced")
    return part


# ── announcements
def make_announcement(
    run: str, peer: PeerId, round: int, stage: int, index: bytes, expires: int, sign: Sign
) -> Announcement:
    """Return a signed announcement of an index; at most 512 bytes."""
    root = sha256(index).digest()
    signature = sign(_rollout_text(run, round, stage, root, expires))
    fixed = [1, peer, round, stage, expires]
    message: bytes = msgpack.packb([*fixed, len(index), index, signature])
    if len(message) > ANNOUNCEMENT_BYTES:
        index_length, index = len(index), b""
        message = msgpack.packb([*fixed, index_length, root, signature])
    else:
        index_length = len(index)
    return Announcement(peer, round, stage, expires, root, index_length, index, message)


def parse_announcement(message: bytes, run: str, verify: Verify) -> Announcement:
    """Parse a remote peer's announcement and check its signature.

    Raises:
        Rejected: too large, malformed, or not signed by the peer that it names for this run.
    """
    announcement, signature = read_announcement(message)
    check_signature(announcement, signature, run, verify)
    return announcement


def read_announcement(message: bytes) -> tuple[Announcement, bytes]:
    """Parse a remote peer's announcement. Return its signature too, which is not checked.

    Raises:
        Rejected: too large or malformed.
    """
    fields = _list(_unpack(message, ANNOUNCEMENT_BYTES), 8)
    peer, (round, stage, expires, index_length) = _peer(fields[:2]), (_count(value, 1 << 40) for value in fields[2:6])
    body, signature = fields[6:]
    if not isinstance(body, bytes) or not isinstance(signature, bytes) or index_length > INDEX_BYTES:
        _malformed()
    inline = len(body) == index_length
    if not inline and len(body) != 32:
        _malformed()
    root = sha256(body).digest() if inline else body
    return Announcement(peer, round, stage, expires, root, index_length, body if inline else b"", message), signature


def check_signature(announcement: Announcement, signature: bytes, run: str, verify: Verify) -> None:
    """Check the signature of an announcement.

    Raises:
        Rejected: it is not of the peer that the announcement names, for this run.
    """
    made = announcement
    if not verify(made.peer, _rollout_text(run, made.round, made.stage, made.root, made.expires), signature):
        raise Rejected("bad-signature")


def _rollout_text(run: str, round: int, stage: int, root: bytes, expires: int) -> bytes:
    return _text("swarmgame-rollout/1", run, round, stage, root, expires)


def make_outbound(
    contribution: Contribution,
    claims: Sequence[Claim],
    *,
    run: str,
    sign: Sign,
    now: float,
    shard_bytes: int = SHARD_BYTES,
    limits: Limits | None = None,
) -> OutboundContribution:
    """Encode a contribution and sign its announcement.

    Raises:
        ValueError: its parts do not agree.
    """
    shards = encode(contribution, run, shard_bytes=shard_bytes, limits=limits)
    index = make_index(contribution, shards, claims)
    expires = int(now + ANNOUNCEMENT_SECONDS)
    announcement = make_announcement(
        run, contribution.peer, contribution.round, contribution.stage, index, expires, sign
    )
    return OutboundContribution(announcement, index, shards)


# ── heartbeats
def make_heartbeat(
    run: str,
    peer: PeerId,
    round: int,
    stage: int,
    expires: float,
    sign: Sign,
    *,
    addresses: Sequence[str] = (),
    leaving: bool = False,
    process: bytes = b"",
    sources: Sources | None = None,
) -> Heartbeat:
    """Return a signed heartbeat; addresses that do not fit are left out."""
    sources = sources or Sources()
    fitting = [address for address in addresses if len(address) <= _ADDRESS_LENGTH][:_ADDRESSES]
    origin = [process, *sources.packed()]
    while True:
        fields = [1, peer, round, stage, float(expires), fitting, leaving, *([origin] if any(origin) else [])]
        packed: bytes = msgpack.packb(fields)
        message: bytes = msgpack.packb([packed, sign(_text("swarmgame-heartbeat/1", run, packed))])
        if len(message) <= HEARTBEAT_BYTES:
            return Heartbeat(peer, round, stage, float(expires), tuple(fitting), leaving, message, process, sources)
        fitting = fitting[:-1]


def parse_heartbeat(message: bytes, run: str, verify: Verify) -> Heartbeat:
    """Parse a remote peer's heartbeat and check its signature.

    Raises:
        Rejected: too large, malformed, or not signed by the peer that it names for this run.
    """
    packed, signature = _list(_unpack(message, HEARTBEAT_BYTES), 2)
    if not isinstance(packed, bytes) or not isinstance(signature, bytes):
        _malformed()
    fields = _list(_unpack(packed, HEARTBEAT_BYTES))
    if len(fields) not in (7, 8):
        _malformed()
    peer, round, stage = _peer(fields[:2]), _count(fields[2], 1 << 40), _count(fields[3], 1 << 40)
    expires, addresses, leaving = fields[4:7]
    process, sources = _origin(fields[7]) if len(fields) == 8 else (b"", Sources())
    if not isinstance(expires, float) or not math.isfinite(expires) or not isinstance(leaving, bool):
        _malformed()
    if (
        any(not isinstance(address, str) or len(address) > _ADDRESS_LENGTH for address in _list(addresses))
        or len(addresses) > _ADDRESSES
    ):
        _malformed()
    if not verify(peer, _text("swarmgame-heartbeat/1", run, packed), signature):
        raise Rejected("bad-signature")
    return Heartbeat(peer, round, stage, expires, tuple(addresses), leaving, message, process, sources)


def _origin(value: Any) -> tuple[bytes, Sources]:
    """Return the process and the sources of a heartbeat. A later release may announce more of them."""
    found = _list(value)
    if len(found) <= len(NAMES) or any(not isinstance(each, bytes) or len(each) > _DIGEST_BYTES for each in found):
        _malformed()
    return found[0], Sources.of_packed(found[1:])


# ── parts of both
def _text(domain: str, run: str, *parts: int | bytes) -> bytes:
    """Return the text to be signed: every part after its length, so that different parts never give the same text."""
    encoded = [
        domain.encode(),
        run.encode(),
        *(part if isinstance(part, bytes) else part.to_bytes(8, "big") for part in parts),
    ]
    return b"".join(len(part).to_bytes(4, "big") + part for part in encoded)


def _unpack(message: bytes, most: int) -> Any:
    if len(message) > most:
        raise Rejected("too-large")
    try:
        return msgpack.unpackb(message, max_map_len=0, max_ext_len=0)
    except (ValueError, TypeError, RecursionError, OverflowError, msgpack.UnpackException) as error:
        raise Rejected("malformed") from error


def _peer(fields: list[Any]) -> PeerId:
    version, peer = fields
    if type(version) is not int or version != 1 or not isinstance(peer, str) or not 0 < len(peer) <= _NAME_LENGTH:
        _malformed()
    return peer


def _list(value: Any, length: int | None = None) -> list[Any]:
    if not isinstance(value, list) or (length is not None and len(value) != length):
        _malformed()
    return value


def _count(value: Any, most: int) -> int:
    if type(value) is not int or not 0 <= value < most:
        _malformed()
    return value


def _malformed() -> NoReturn:
    raise Rejected("malformed")
