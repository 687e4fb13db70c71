"""Checks that an archived contribution is what its author signed.

The announcement is signed and names the index of shards by its hash, and the index names each shard. The shards are
encoded again from the rows, so this needs the author's version of zstandard: another one may compress to other bytes,
which says nothing about the author.
"""

from __future__ import annotations

import base64
from dataclasses import replace
from enum import StrEnum
from hashlib import sha256

import pyarrow as pa

from swarmgame.archive.rows import Head
from swarmgame.game.state import Contribution
from swarmgame.swarm.codec import encode
from swarmgame.swarm.identity import verify as verify_identity
from swarmgame.swarm.messages import Rejected, Verify, parse_announcement, parse_index


class Proof(StrEnum):
    """What is known of a contribution's origin."""

    SIGNED = "as its author signed it"
    FORGED = "not what its author signed"
    UNKNOWN = "not comparable with what its author signed"
    ABSENT = "without a signature"


def proof_of(
    head: Head, contribution: Contribution, rows: pa.Table, run: str, verify: Verify = verify_identity
) -> Proof:
    """Compare an archived contribution with the signature that came with it.

    Args:
        head, contribution, rows: as `contributions_of` yields them.
        run: id of the run, a part of the signed text.
        verify: checks a signature by the author's id.
    """
    messages = set(rows["announcement"].to_pylist())
    if not head["shards"] or not messages:
        return Proof.ABSENT
    if len(messages) != 1 or (message := messages.pop()) is None:
        return Proof.FORGED
    try:
        announcement = parse_announcement(message, run, verify)
        index = announcement.index or base64.b64decode(head["index"])
        named = [entry.name for entry in parse_index(index)]
    except (Rejected, ValueError):
        return Proof.FORGED
    place = (announcement.peer, announcement.round, announcement.stage)
    if place != (contribution.peer, contribution.round, contribution.stage):
        return Proof.FORGED
    shards = [(bytes.fromhex(name), count) for name, count in head["shards"]]
    if sha256(index).digest() != announcement.root or any(name not in named for name, _ in shards):
        return Proof.FORGED
    return Proof.SIGNED if _encoded(contribution, shards, run) else Proof.UNKNOWN


def _encoded(contribution: Contribution, shards: list[tuple[bytes, int]], run: str) -> bool:
    start = 0
    for name, count in shards:
        groups = contribution.groups[start : start + count]
        start += count
        references = {group.question_id: contribution.references[group.question_id] for group in groups}
        part = replace(contribution, groups=groups, references=references)
        if [shard.name for shard in encode(part, run, shard_bytes=1 << 40)] != [name]:
            return False
    return start == len(contribution.groups)
