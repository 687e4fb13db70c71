"""The rollout codec: a contribution as shards of bytes, and back.

A shard holds complete groups, about 1 MiB of them: one byte for the compression, then (zstd, or plain) a magic number,
the length of a msgpack header, the header, and columns as little-endian buffers: prompt ids u32, completion ids u32,
log-probabilities f16, all texts as one UTF-8 blob. Its name is its SHA-256. `Prompt.payload` and `Question` are not
sent; log-probabilities are rounded to f16, nothing else is lost.

Pure; the input of the decoder is untrusted. Every size is checked against `Limits` before memory is allocated for it,
and `decode_shard` returns a consistent shard or raises `Malformed`, and nothing else.
"""

from __future__ import annotations

import struct
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from typing import Any, NoReturn

import msgpack
import numpy as np
import zstandard

from swarmgame.game.packed_numbers import PackedNumbers
from swarmgame.game.state import Contribution, FinishReason, Group, Message, PeerId, Prompt, QuestionRef, Rollout

SCHEMA = 1
SHARD_BYTES = 1 << 20
_MAGIC = b"SGR1"
_PLAIN, _ZSTD = b"\x00", b"\x01"
_FINISH = (FinishReason.STOP, FinishReason.LENGTH)
_LOWEST = -65504.0
"""Least finite f16: a log-probability below is sent as this."""
_MINUS_ZERO, _MINUS_INFINITY = 0x8000, 0xFC00
"""Bits of an f16: values from the first to just below the second are finite and not above zero, as is 0."""


class Malformed(Exception):
    """A shard that cannot be used. `reason` is its label (`too-large`, `malformed`, `bad-hash`); `detail` is logged."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail


@dataclass(frozen=True, slots=True)
class Limits:
    """Most that a shard may hold. Defaults fit 64 × 16 rollouts of 4,096 tokens.

    Args:
        shard_bytes: as sent.
        expanded_bytes: decompressed.
        expansion: decompressed over compressed size, if the decompressed size is above `expansion_floor`.
        expansion_floor: smaller shards may expand by any factor.
        header_bytes: of the msgpack header, prompts' messages included.
        groups, rollouts, tokens: in a shard; tokens are prompt and completion ids together.
        text_bytes: of all completions together.
        string: characters of an id or a name.
        messages: turns in a prompt.
    """

    shard_bytes: int = 16 << 20
    expanded_bytes: int = 64 << 20
    expansion: int = 20
    expansion_floor: int = 256 << 10
    header_bytes: int = 2 << 20
    groups: int = 4096
    rollouts: int = 65_536
    tokens: int = 8 << 20
    text_bytes: int = 32 << 20
    string: int = 512
    messages: int = 64


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
    """A decoded shard: the run that it belongs to, and its part of a contribution."""

    run: str
    contribution: Contribution


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
    rollouts = sum(6 * len(rollout.token_ids) + len(rollout.text) + 12 for rollout in group.rollouts)
    return prompt + 4 * len(group.prompt.token_ids) + rollouts + 100


def _plain(part: Contribution, run: str) -> bytes:
    rollouts = [rollout for group in part.groups for rollout in group.rollouts]
    texts = [rollout.text.encode(errors="replace") for rollout in rollouts]
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
        "finish": bytes(_FINISH.index(rollout.finish_reason) for rollout in rollouts),
    }
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
        _refuse("no shards")
    first, *others = parts
    if not others:
        return first
    head = replace(first, groups=(), references={})
    if any(replace(part, groups=(), references={}) != head for part in others):
        _refuse("shards of different contributions")
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
        _refuse("no magic")
    (header_bytes,) = struct.unpack_from("<I", plain, 4)
    if header_bytes > limits.header_bytes:
        raise Malformed("too-large", f"header of {header_bytes} bytes")
    if 8 + header_bytes > len(plain):
        _refuse("header longer than the shard")
    header = _Header(plain[8 : 8 + header_bytes], limits)
    return DecodedShard(header.run, header.contribution(memoryview(plain)[8 + header_bytes :]))


def _unpacked(data: bytes, limits: Limits) -> bytes:
    if len(data) > limits.shard_bytes:
        raise Malformed("too-large", f"{len(data)} bytes")
    kind, body = data[:1], memoryview(data)[1:]
    if kind == _PLAIN:
        return bytes(body)
    if kind != _ZSTD:
        _refuse("unknown packing")
    try:
        frame = zstandard.get_frame_parameters(body)
        size = frame.content_size
        # Our encoder writes the size into every frame, and no window larger than the content needs.
        if size in (zstandard.CONTENTSIZE_UNKNOWN, zstandard.CONTENTSIZE_ERROR) or frame.dict_id:
            _refuse("zstd frame without a size")
        allowed = min(limits.expanded_bytes, max(limits.expansion_floor, limits.expansion * len(body)))
        if size > allowed or frame.window_size > max(limits.expanded_bytes, 1 << 20):
            raise Malformed("too-large", f"{len(body)} bytes expand to {size}, {allowed} allowed")
        plain = zstandard.ZstdDecompressor().decompress(body, max_output_size=allowed, allow_extra_data=False)
    except (zstandard.ZstdError, ValueError) as error:
        raise Malformed("malformed", f"zstd: {error}") from error
    if len(plain) != size:
        _refuse("zstd frame of another size than it declares")
    return bytes(plain)


def _refuse(detail: str) -> NoReturn:
    raise Malformed("malformed", detail)


class _Header:
    """A checked msgpack header: after construction every field has its type and is within limits."""

    def __init__(self, packed: bytes, limits: Limits) -> None:
        self.limits = limits
        most = max(limits.rollouts, limits.groups)
        try:
            fields = msgpack.unpackb(
                packed,
                max_array_len=most,
                max_map_len=32,
                max_str_len=limits.header_bytes,
                max_bin_len=limits.rollouts,
                max_ext_len=0,
            )
        except (ValueError, TypeError, RecursionError, OverflowError, msgpack.UnpackException) as error:
            raise Malformed("malformed", f"header: {type(error).__name__}: {error}"[:200]) from error
        if not isinstance(fields, dict) or fields.get("schema") != SCHEMA:
            _refuse("unknown schema")
        self.fields: Mapping[Any, Any] = fields
        self.run = self._string(fields.get("run"), limits.string)
        self.peer: PeerId = self._string(fields.get("peer"), limits.string)
        self.tokenizer = self._string(fields.get("tokenizer"), limits.string)
        self.round, self.stage, self.policy = (
            self._count(fields.get(name), 1 << 62) for name in ("round", "stage", "policy")
        )
        self.references = self._references()
        self.lengths = self._counts("lengths", limits.tokens)
        self.texts = self._counts("texts", limits.text_bytes)
        finish = fields.get("finish")
        if not isinstance(finish, bytes) or not len(finish) == len(self.lengths) == len(self.texts):
            _refuse("columns of unequal length")
        self.finish: bytes = finish
        if any(code >= len(_FINISH) for code in finish):
            _refuse("unknown finish reason")
        self.prompts = self._prompts()

    def contribution(self, columns: memoryview) -> Contribution:
        """Return the columns, split into groups."""
        prompted, sampled, written = sum(prompt[1] for prompt in self.prompts), sum(self.lengths), sum(self.texts)
        if prompted + sampled > self.limits.tokens or written > self.limits.text_bytes:
            raise Malformed("too-large", f"{prompted + sampled} tokens, {written} bytes of text")
        if len(columns) != 4 * prompted + 6 * sampled + written:
            _refuse(f"{len(columns)} bytes of columns, the header declares {4 * prompted + 6 * sampled + written}")
        halves = np.frombuffer(columns[4 * (prompted + sampled) : 4 * prompted + 6 * sampled], dtype="<u2")
        if not bool((((halves >= _MINUS_ZERO) & (halves < _MINUS_INFINITY)) | (halves == 0)).all()):
            _refuse("a log-probability is not finite or above zero")
        ids, logprobs = np.frombuffer(columns[4 * prompted : 4 * (prompted + sampled)], dtype="<u4"), halves.view("<f2")
        blob = columns[4 * prompted + 6 * sampled :]
        groups, prompt_at, at, text_at, rollout = [], 0, 0, 0, 0
        try:
            for question_id, prompt_length, count, messages in self.prompts:
                rollouts = []
                for _ in range(count):
                    length, size = self.lengths[rollout], self.texts[rollout]
                    rollouts.append(
                        Rollout(
                            text=str(blob[text_at : text_at + size], "utf-8"),
                            token_ids=PackedNumbers(ids[at : at + length]),
                            logprobs=PackedNumbers(logprobs[at : at + length]),
                            finish_reason=_FINISH[self.finish[rollout]],
                        )
                    )
                    at, text_at, rollout = at + length, text_at + size, rollout + 1
                prompt = Prompt(
                    question_id=question_id,
                    messages=messages,
                    token_ids=struct.unpack_from(f"<{prompt_length}I", columns, 4 * prompt_at),
                )
                prompt_at += prompt_length
                groups.append(Group(prompt=prompt, rollouts=tuple(rollouts)))
            return Contribution(
                peer=self.peer,
                round=self.round,
                stage=self.stage,
                groups=tuple(groups),
                references=self.references,
                tokenizer=self.tokenizer,
                policy_version=self.policy,
            )
        except ValueError as error:
            # Text that is not UTF-8, a duplicate item, an item without a reference.
            raise Malformed("malformed", str(error)[:200]) from error

    def _string(self, value: Any, longest: int) -> str:
        if not isinstance(value, str) or len(value) > longest:
            _refuse("expected a short text")
        return value

    @staticmethod
    def _count(value: Any, most: int) -> int:
        if type(value) is not int or not 0 <= value < most:
            _refuse("expected a count")
        return value

    def _list(self, value: Any, most: int, length: int | None = None) -> list[Any]:
        if not isinstance(value, list) or len(value) > most or (length is not None and len(value) != length):
            _refuse("expected a list")
        return value

    def _counts(self, name: str, most: int) -> list[int]:
        counts = self._list(self.fields.get(name), self.limits.rollouts)
        if counts and (set(map(type, counts)) != {int} or min(counts) < 0 or max(counts) > most):
            _refuse("expected a count")
        return counts

    def _references(self) -> dict[str, QuestionRef]:
        found = {}
        for row in self._list(self.fields.get("references"), 2 * self.limits.groups):
            environment, config, seed, index = self._list(row, 4, 4)
            reference = QuestionRef(
                self._string(environment, self.limits.string),
                self._string(config, self.limits.string),
                self._count(seed, 1 << 63),
                self._count(index, 1 << 63),
            )
            found[reference.id] = reference
        return found

    def _prompts(self) -> list[tuple[str, int, int, tuple[Message, ...]]]:
        prompts = []
        for row in self._list(self.fields.get("prompts"), self.limits.groups):
            question_id, length, count, turns = self._list(row, 4, 4)
            messages = []
            for turn in self._list(turns, self.limits.messages):
                role, content = self._list(turn, 2, 2)
                messages.append(
                    Message(self._string(role, self.limits.string), self._string(content, self.limits.header_bytes))
                )
            prompts.append(
                (
                    self._string(question_id, self.limits.string),
                    self._count(length, self.limits.tokens + 1),
                    self._count(count, self.limits.rollouts + 1),
                    tuple(messages),
                )
            )
        if sum(prompt[2] for prompt in prompts) != len(self.lengths):
            _refuse("prompts and rollouts do not agree")
        return prompts
