"""Announcements and heartbeats: the small signed messages by which peers learn what there is and who is there.

An announcement says "in this round and stage I said this": the hash of an index of shards (the root), and the index
itself where it fits into 512 bytes; a longer index is fetched by its hash like any body. A heartbeat says where a peer
is in the game, how to reach it, and until when to believe it. Both are signed over a domain-separated text, so that
neither can stand for the other or for another run.

Pure, and the input of `parse` is a stranger's. Invariant: a parsed message is well-formed and signed by the peer that
it names; whether it is fresh, wanted and admitted is the mailbox's business.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Any, NoReturn

import msgpack

from swarmgame.game.protocol import Claim
from swarmgame.game.state import Contribution, PeerId
from swarmgame.swarm.codec import Shard

ANNOUNCEMENT_BYTES = 512
HEARTBEAT_BYTES = 512
INDEX_BYTES = 1 << 20
"""The longest index of shards that is fetched: about twenty thousand shards."""
_NAME_LENGTH = 64
_ADDRESSES = 4
_ADDRESS_LENGTH = 96

Verify = Callable[[PeerId, bytes, bytes], bool]
"""(peer, message, signature) → whether that peer signed it."""
Sign = Callable[[bytes], bytes]


class Rejected(Exception):
    """A small message that cannot be used; `reason` is its label: `too-large`, `malformed` or `bad-signature`."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


@dataclass(frozen=True, slots=True)
class ShardEntry:
    """What an author says of one shard.

    Args:
        name: SHA-256 of its bytes.
        size: bytes, as it travels.
        groups: how many groups it holds.
        spread: how many of them claim a spread of rewards.
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
    """What one peer said in one stage, by hash.

    Args:
        peer, round, stage: who, when.
        expires: Unix time, seconds; a hint for caches, freshness is a matter of rounds.
        root: SHA-256 of the index.
        index_bytes: length of the index.
        index: the index itself, or empty where it is too long to be inlined.
        message: the announcement as it travels, to be passed on unchanged.
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
class Heartbeat:
    """Where a peer is.

    Args:
        expires: Unix time, seconds; after it the peer counts as gone.
        addresses: multiaddrs without the peer id; may be empty.
        goodbye: the peer has left.
        message: the heartbeat as it travels.
    """

    peer: PeerId
    round: int
    stage: int
    expires: float
    addresses: tuple[str, ...]
    goodbye: bool
    message: bytes


# ── the index of shards
def make_index(contribution: Contribution, shards: Sequence[Shard], claims: Sequence[Claim] = ()) -> bytes:
    """The index of a contribution's shards.

    Args:
        claims: one a group, or none.

    Raises:
        ValueError: another number of claims than of groups.
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


def parse_index(packed: bytes) -> tuple[ShardEntry, ...]:
    """The shards that an index names.

    Raises:
        Rejected: it is malformed.
    """
    rows = _list(_unpack(packed, INDEX_BYTES), 2)[1]
    entries = []
    for row in _list(rows):
        name, size, groups, spread, mean, tokens = _list(row, 6)
        if not (isinstance(name, bytes) and len(name) == 32 and (mean is None or isinstance(mean, float))):
            _malformed()
        entries.append(
            ShardEntry(
                name,
                _whole(size, 1 << 40),
                _whole(groups, 1 << 32),
                min(_whole(spread, 1 << 32), groups),
                math.nan if mean is None else mean,
                _whole(tokens, 1 << 40),
            )
        )
    return tuple(entries)


# ── announcements
def announce(run: str, peer: PeerId, round: int, stage: int, index: bytes, expires: int, sign: Sign) -> Announcement:
    """A signed announcement of an index; at most 512 bytes on the wire."""
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
    """A stranger's announcement, its signature checked.

    Raises:
        Rejected: too large, malformed, or not signed by the peer that it names for this run.
    """
    fields = _list(_unpack(message, ANNOUNCEMENT_BYTES), 8)
    peer, (round, stage, expires, index_length) = _head(fields[:2]), (_whole(value, 1 << 40) for value in fields[2:6])
    body, signature = fields[6:]
    if not isinstance(body, bytes) or not isinstance(signature, bytes) or index_length > INDEX_BYTES:
        _malformed()
    inline = len(body) == index_length
    if not inline and len(body) != 32:
        _malformed()
    root = sha256(body).digest() if inline else body
    if not verify(peer, _rollout_text(run, round, stage, root, expires), signature):
        raise Rejected("bad-signature")
    return Announcement(peer, round, stage, expires, root, index_length, body if inline else b"", message)


def _rollout_text(run: str, round: int, stage: int, root: bytes, expires: int) -> bytes:
    return _text("swarmgame-rollout/1", run, round, stage, root, expires)


# ── heartbeats
def beat(
    run: str,
    peer: PeerId,
    round: int,
    stage: int,
    expires: float,
    sign: Sign,
    *,
    addresses: Sequence[str] = (),
    goodbye: bool = False,
) -> Heartbeat:
    """A signed heartbeat; addresses that do not fit are left out."""
    fitting = [address for address in addresses if len(address) <= _ADDRESS_LENGTH][:_ADDRESSES]
    fields = [1, peer, round, stage, float(expires), fitting, goodbye]
    packed: bytes = msgpack.packb(fields)
    message: bytes = msgpack.packb([packed, sign(_text("swarmgame-heartbeat/1", run, packed))])
    if len(message) > HEARTBEAT_BYTES:
        return beat(run, peer, round, stage, expires, sign, addresses=fitting[:-1], goodbye=goodbye)
    return Heartbeat(peer, round, stage, float(expires), tuple(fitting), goodbye, message)


def parse_heartbeat(message: bytes, run: str, verify: Verify) -> Heartbeat:
    """A stranger's heartbeat, its signature checked.

    Raises:
        Rejected: too large, malformed, or not signed by the peer that it names for this run.
    """
    packed, signature = _list(_unpack(message, HEARTBEAT_BYTES), 2)
    if not isinstance(packed, bytes) or not isinstance(signature, bytes):
        _malformed()
    fields = _list(_unpack(packed, HEARTBEAT_BYTES), 7)
    peer, round, stage = _head(fields[:2]), _whole(fields[2], 1 << 40), _whole(fields[3], 1 << 40)
    expires, addresses, goodbye = fields[4:]
    if not isinstance(expires, float) or not math.isfinite(expires) or not isinstance(goodbye, bool):
        _malformed()
    if (
        any(not isinstance(address, str) or len(address) > _ADDRESS_LENGTH for address in _list(addresses))
        or len(addresses) > _ADDRESSES
    ):
        _malformed()
    if not verify(peer, _text("swarmgame-heartbeat/1", run, packed), signature):
        raise Rejected("bad-signature")
    return Heartbeat(peer, round, stage, expires, tuple(addresses), goodbye, message)


# ── parts of both
def _text(domain: str, run: str, *parts: int | bytes) -> bytes:
    """What is signed: every part after its length, so that no two lists of parts give one text."""
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


def _head(fields: list[Any]) -> PeerId:
    version, peer = fields
    if type(version) is not int or version != 1 or not isinstance(peer, str) or not 0 < len(peer) <= _NAME_LENGTH:
        _malformed()
    return peer


def _list(value: Any, length: int | None = None) -> list[Any]:
    if not isinstance(value, list) or (length is not None and len(value) != length):
        _malformed()
    return value


def _whole(value: Any, most: int) -> int:
    if type(value) is not int or not 0 <= value < most:
        _malformed()
    return value


def _malformed() -> NoReturn:
    raise Rejected("malformed")
