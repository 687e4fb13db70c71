"""Payloads: a complete contribution in one message, for a backend in which every peer receives everything.

A payload holds a signed announcement, its index and its shards, and is checked like a contribution over libp2p:
signature, hashes, limits, schema. In PULL mode only the chosen shards are decoded.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from hashlib import sha256
from typing import NamedTuple

import msgpack

from swarmgame.game.protocol import CollectPolicy, Exchange, Origin
from swarmgame.game.state import Contribution, PeerId
from swarmgame.swarm.codec import Limits, Malformed, decode_shard, merge
from swarmgame.swarm.messages import (
    Announcement,
    OutboundContribution,
    Rejected,
    ShardEntry,
    Verify,
    check_shard,
    parse_announcement,
    parse_index,
)
from swarmgame.swarm.topology import Offer, choose

logger = logging.getLogger(__name__)


class _Payload(NamedTuple):
    announcement: Announcement
    packed_index: bytes
    entries: tuple[ShardEntry, ...]
    bodies: list[bytes]


def pack_payload(outbound: OutboundContribution) -> bytes:
    """Return the payload of a contribution."""
    packed: bytes = msgpack.packb(
        [outbound.announcement.message, outbound.index, [shard.data for shard in outbound.shards]]
    )
    return packed


def read_payloads(
    payloads: Mapping[PeerId, bytes],
    position: tuple[int, int],
    policy: CollectPolicy,
    *,
    run: str,
    verify: Verify,
    limits: Limits,
    outcomes: Counter[str],
) -> dict[PeerId, tuple[Contribution, Origin] | None]:
    """Return the contributions of other peers, each with its origin.

    Args:
        position: the round and stage that they must be of.
        outcomes: where what is accepted and what is refused are counted.

    Returns:
        One entry for each peer whose contribution can be used; None if nothing of it was chosen (PULL).
    """
    read: dict[PeerId, _Payload] = {}
    for peer, packed in payloads.items():
        try:
            read[peer] = _parse(packed, peer, position, run, verify, limits)
        except Rejected as error:
            outcomes[error.reason] += 1
    parts: dict[PeerId, dict[int, Contribution]] = {peer: {} for peer in read}
    failed: set[PeerId] = set()
    offers = {
        Offer(peer, *position, number, entry)
        for peer, payload in read.items()
        for number, entry in enumerate(payload.entries)
    }
    taken: list[Offer] = []
    while chosen := choose(offers, policy, taken) if policy.exchange is Exchange.PULL else sorted(offers, key=_order):
        offers.difference_update(chosen)
        for offer in chosen:
            source = read[offer.peer]
            try:
                decoded = decode_shard(source.bodies[offer.position], limits)
                parts[offer.peer][offer.position] = check_shard(decoded, run, source.announcement, offer.shard)
                taken.append(offer)
            except Malformed as error:
                _refuse(offer.peer, error, failed, outcomes)
    contributions: dict[PeerId, tuple[Contribution, Origin] | None] = {}
    for peer in read.keys() - failed:
        positions = sorted(parts[peer])
        try:
            merged = merge([parts[peer][position] for position in positions]) if positions else None
            contributions[peer] = None if merged is None else (merged, _origin(read[peer], positions))
        except Malformed as error:
            _refuse(peer, error, failed, outcomes)
    outcomes["accepted"] += len(contributions)
    return contributions


def _origin(payload: _Payload, positions: Sequence[int]) -> Origin:
    chosen = [payload.entries[position] for position in positions]
    return Origin(
        announcement=payload.announcement.message,
        index=b"" if payload.announcement.index else payload.packed_index,
        shards=tuple(entry.name for entry in chosen),
        groups=tuple(entry.groups for entry in chosen),
    )


def _order(offer: Offer) -> tuple[PeerId, int]:
    return offer.peer, offer.position


def _refuse(peer: PeerId, error: Malformed, failed: set[PeerId], outcomes: Counter[str]) -> None:
    logger.info("refused a contribution of %s: %s", peer, error)
    failed.add(peer)
    outcomes[error.reason] += 1


def _parse(
    payload: bytes, peer: PeerId, position: tuple[int, int], run: str, verify: Verify, limits: Limits
) -> _Payload:
    """Check everything but the contents of the shards.

    Raises:
        Rejected: it cannot be used.
    """
    try:
        message, index, bodies = msgpack.unpackb(payload, max_map_len=0, max_ext_len=0)
    except (ValueError, TypeError, RecursionError, OverflowError, msgpack.UnpackException) as error:
        raise Rejected("malformed") from error
    if not isinstance(message, bytes) or not isinstance(index, bytes) or not isinstance(bodies, list):
        raise Rejected("malformed")
    announcement = parse_announcement(message, run, verify)
    if (announcement.peer, announcement.round, announcement.stage) != (peer, *position):
        raise Rejected("malformed")
    if announcement.expires <= time.time():
        raise Rejected("stale")
    if sha256(index).digest() != announcement.root:
        raise Rejected("bad-hash")
    entries = parse_index(index, limits)
    if len(bodies) != len(entries) or not all(isinstance(body, bytes) for body in bodies):
        raise Rejected("malformed")
    for body, entry in zip(bodies, entries, strict=True):
        if len(body) > limits.shard_bytes:
            raise Rejected("too-large")
        if sha256(body).digest() != entry.name:
            raise Rejected("bad-hash")
    return _Payload(announcement, index, entries, bodies)
