"""The rollout codec: a contribution as shards of bytes, and back.

A shard holds complete groups, about 1 MiB of them: one byte for the compression, then (zstd, or plain) a magic number,
the length of a msgpack header, the header, and columns as little-endian buffers: prompt ids u32, completion ids u32,
log-probabilities f16 (of the policy's ids only), all texts as one UTF-8 blob. The header has the lengths of segments
where rollouts have several. A shard's name is its SHA-256. `Prompt.payload` and `Question` are not sent;
log-probabilities are rounded to f16, nothing else is lost.
The decoder's input is untrusted: every size is checked against `Limits` before memory is allocated for it, and
`decode_shard` returns a consistent shard or raises `Malformed`.
"""

from __future__ import annotations

import struct
from array import array
from collections.abc import Sequence
from dataclasses import dataclass, replace
from hashlib import sha256

import msgpack
import numpy as np
import zstandard

from swarmgame.game.state import Contribution, Group
from swarmgame.swarm.segment_column import column_of, text_of
from swarmgame.swarm.shard_header import FINISH_REASONS, SCHEMA, Limits, Malformed, ShardHeader, refuse

__all__ = [
    "SCHEMA",
    "SHARD_BYTES",
    "DecodedShard",
    "Limits",
    "Malformed",
    "Shard",
    "decode",
    "decode_shard",
    "encode",
    "merge",
]

SHARD_BYTES = 1 << 20
_MAGIC = b"SGR1"
_PLAIN, _ZSTD = b"\x00", b"\x01"
_LOWEST = -65504.0
"""Least finite f16: a log-probability below is sent as this."""


@dataclass(frozen=True, slots=True)
class Shard:
    """Some complete groups of a contribution, ready to be served.

    Args:
        name: SHA-256 of `data`.
        groups: positions of its groups in the contribution.
        tokens: completion ids in it.
    """

    name: bytes
    data: bytes
    groups: range
    tokens: int


@dataclass(frozen=True, slots=True)
class DecodedShard:
    """A decoded shard: the run that it belongs to, its part of a contribution, and its bytes before compression."""

    run: str
    contribution: Contribution
    size: int = 0


# ── encoding
def encode(
    contribution: Contribution, run: str, *, shard_bytes: int = SHARD_BYTES, limits: Limits | None = None
) -> tuple[Shard, ...]:
    """Encode a contribution as shards of about `shard_bytes` before compression; without groups it is one empty shard.

    Raises:
        ValueError: a reference has another key than its own id, or a log-probability is NaN or infinite.
    """
    limits = limits or Limits()
    for question_id, reference in contribution.references.items():
        if question_id != reference.id:
            raise ValueError(f"reference of question {question_id!r} is of question {reference.id!r}")
    used = {group.question_id for group in contribution.groups}
    unused = {key: reference for key, reference in contribution.references.items() if key not in used}
    shards: list[Shard] = []
    start = 0
    while start < len(contribution.groups) or not shards:
        stop, size = start, 0
        while stop < len(contribution.groups):
            size += _group_bytes(contribution.groups[stop])
            if stop > start and size > shard_bytes:
                break
            stop += 1
        part = contribution.groups[start:stop]
        references = {group.question_id: contribution.references[group.question_id] for group in part} | (
            {} if shards else unused
        )
        data = _packed(_plain(replace(contribution, groups=part, references=references), run), limits)
        tokens = sum(len(rollout.token_ids) for group in part for rollout in group.rollouts)
        shards.append(Shard(name=sha256(data).digest(), data=data, groups=range(start, stop), tokens=tokens))
        start = stop
    return tuple(shards)


def _group_bytes(group: Group) -> int:
    prompt = sum(len(message.content) + len(message.role) + 8 for message in group.prompt.messages)
    rollouts = sum(
        4 * len(rollout.token_ids) + 2 * len(rollout.logprobs) + len(text_of(rollout)) + 12 + 8 * len(rollout.segments)
        for rollout in group.rollouts
    )
    return prompt + 4 * len(group.prompt.token_ids) + rollouts + 100


def _plain(part: Contribution, run: str) -> bytes:
    rollouts = [rollout for group in part.groups for rollout in group.rollouts]
    texts = [text_of(rollout) for rollout in rollouts]
    logprobs = np.frombuffer(b"".join(array("d", rollout.logprobs) for rollout in rollouts), dtype=np.float64)
    if not np.isfinite(logprobs).all():
        raise ValueError(f"a log-probability of {part.peer} in round {part.round}, stage {part.stage} is not finite")
    header = {
        "schema": SCHEMA,
        "run": run,
        "peer": part.peer,
        "round": part.round,
        "stage": part.stage,
        "policy": part.policy_version,
        "tokenizer": part.tokenizer,
        "references": [[r.environment, r.config, r.seed, r.index] for r in part.references.values()],
        "prompts": [
            [
                group.question_id,
                len(group.prompt.token_ids),
                len(group.rollouts),
                [[m.role, m.content] for m in group.prompt.messages],
            ]
            for group in part.groups
        ],
        "lengths": [len(rollout.token_ids) for rollout in rollouts],
        "texts": [len(text) for text in texts],
        "finish": bytes(FINISH_REASONS.index(rollout.finish_reason) for rollout in rollouts),
    }
    if (segments := column_of(rollouts)) is not None:
        header["segments"] = segments
    if part.role:
        header["role"] = part.role
    packed = msgpack.packb(header, unicode_errors="replace")
    columns = (
        *(struct.pack(f"<{len(group.prompt.token_ids)}I", *group.prompt.token_ids) for group in part.groups),
        *(struct.pack(f"<{len(rollout.token_ids)}I", *rollout.token_ids) for rollout in rollouts),
        # Rounding may leave a log-probability slightly above zero, which a receiver refuses.
        np.clip(logprobs, _LOWEST, 0.0).astype("<f2").tobytes(),
        *texts,
    )
    return b"".join((_MAGIC, struct.pack("<I", len(packed)), packed, *columns))


def _packed(plain: bytes, limits: Limits) -> bytes:
    """Compress, unless a receiver would take it for a zip bomb: repetitive text compresses a thousandfold."""
    compressed = zstandard.ZstdCompressor(level=3).compress(plain)
    accepted = len(plain) <= max(limits.expansion_floor, limits.expansion * len(compressed))
    return _ZSTD + compressed if accepted and len(compressed) < len(plain) else _PLAIN + plain


# ── decoding
def decode(shards: Sequence[bytes], limits: Limits | None = None) -> Contribution:
    """Decode the shards of a contribution, in the order given. Raise `Malformed` if they cannot be used or merged."""
    return merge([decode_shard(data, limits).contribution for data in shards])


def merge(parts: Sequence[Contribution]) -> Contribution:
    """Merge parts of one contribution, in the order given.

    Raises:
        Malformed: they differ in more than their groups, or an item is in two of them.
    """
    if not parts:
        refuse("no shards")
    first, *others = parts
    if not others:
        return first
    head = replace(first, groups=(), references={})
    if any(replace(part, groups=(), references={}) != head for part in others):
        refuse("shards of different contributions")
    references = {question_id: reference for part in parts for question_id, reference in part.references.items()}
    try:
        return replace(first, groups=tuple(group for part in parts for group in part.groups), references=references)
    except ValueError as error:
        raise Malformed("malformed", str(error)) from error


def decode_shard(data: bytes, limits: Limits | None = None) -> DecodedShard:
    """Decode an untrusted shard.

    Raises:
        Malformed: it breaks a limit or its parts do not agree.
    """
    limits = limits or Limits()
    plain = _unpacked(data, limits)
    if len(plain) < 8 or plain[:4] != _MAGIC:
        refuse("no magic")
    (header_bytes,) = struct.unpack_from("<I", plain, 4)
    if header_bytes > limits.header_bytes:
        raise Malformed("too-large", f"header of {header_bytes} bytes")
    if 8 + header_bytes > len(plain):
        refuse("header longer than the shard")
    header = ShardHeader(plain[8 : 8 + header_bytes], limits)
    return DecodedShard(header.run, header.contribution(memoryview(plain)[8 + header_bytes :]), len(plain))


def _unpacked(data: bytes, limits: Limits) -> bytes:
    if len(data) > limits.shard_bytes:
        raise Malformed("too-large", f"{len(data)} bytes")
    kind, body = data[:1], memoryview(data)[1:]
    if kind == _PLAIN:
        return bytes(body)
    if kind != _ZSTD:
        refuse("unknown packing")
    try:
        frame = zstandard.get_frame_parameters(body)
        size = frame.content_size
        # Our encoder writes the size into every frame, and no window larger than the content needs.
        if size in (zstandard.CONTENTSIZE_UNKNOWN, zstandard.CONTENTSIZE_ERROR) or frame.dict_id:
            refuse("zstd frame without a size")
        allowed = min(limits.expanded_bytes, max(limits.expansion_floor, limits.expansion * len(body)))
        if size > allowed or frame.window_size > max(limits.expanded_bytes, 1 << 20):
            raise Malformed("too-large", f"{len(body)} bytes expand to {size}, {allowed} allowed")
        plain = zstandard.ZstdDecompressor().decompress(body, max_output_size=allowed, allow_extra_data=False)
    except (zstandard.ZstdError, ValueError) as error:
        raise Malformed("malformed", f"zstd: {error}") from error
    if len(plain) != size:
        refuse("zstd frame of another size than it declares")
    return bytes(plain)
