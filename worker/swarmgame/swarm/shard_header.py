"""The header of a shard from another peer, and what a shard may hold.

Untrusted: every field is checked for its type and against `Limits` before anything is allocated for it. A `ShardHeader`
exists only if its fields agree with each other; it then divides the shard's columns into a contribution.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

import msgpack
import numpy as np

from swarmgame.game.packed_numbers import PackedNumbers
from swarmgame.game.state import Contribution, FinishReason, Group, Message, PeerId, Prompt, QuestionRef, Rollout
from swarmgame.swarm.segment_column import SegmentColumn

SCHEMA = 1
FINISH_REASONS = (
    FinishReason.STOP,
    FinishReason.LENGTH,
    FinishReason.TURNS,
    FinishReason.DONE,
    FinishReason.ERROR,
)
"""By their number in a shard."""
_MINUS_ZERO, _MINUS_INFINITY = 0x8000, 0xFC00
"""Bits of an f16: values from the first to just below the second are finite and not above zero, as is 0."""


class Malformed(Exception):
    """A shard that cannot be used. `reason` is its label, a name in `OUTCOMES`; `detail` is logged."""

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
        rollouts_per_group: of one prompt; the game's generations, where they are known.
        text_bytes: of all completions together.
        string: characters of an id or a name.
        messages: turns in a prompt.
        segments: of a rollout; the policy's and the environment's turns together.
    """

    shard_bytes: int = 16 << 20
    expanded_bytes: int = 64 << 20
    expansion: int = 20
    expansion_floor: int = 256 << 10
    header_bytes: int = 2 << 20
    groups: int = 4096
    rollouts: int = 65_536
    rollouts_per_group: int = 65_536
    tokens: int = 8 << 20
    text_bytes: int = 32 << 20
    string: int = 512
    messages: int = 64
    segments: int = 1024


def refuse(detail: str) -> NoReturn:
    """Raise `Malformed`."""
    raise Malformed("malformed", detail)


class ShardHeader:
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
            refuse("unknown schema")
        self.fields: Mapping[Any, Any] = fields
        self.run = self._string(fields.get("run"), limits.string)
        self.peer: PeerId = self._string(fields.get("peer"), limits.string)
        self.tokenizer = self._string(fields.get("tokenizer"), limits.string)
        self.round, self.stage, self.policy = (
            self._count(fields.get(name), 1 << 62) for name in ("round", "stage", "policy")
        )
        self.role = self._string(fields.get("role", ""), limits.string)
        self.references = self._references()
        self.lengths = self._counts("lengths", limits.tokens)
        self.texts = self._counts("texts", limits.text_bytes)
        finish = fields.get("finish")
        if not isinstance(finish, bytes) or not len(finish) == len(self.lengths) == len(self.texts):
            refuse("columns of unequal length")
        self.finish: bytes = finish
        if any(code >= len(FINISH_REASONS) for code in finish):
            refuse("unknown finish reason")
        try:
            self.segments = SegmentColumn(fields.get("segments"), self.lengths, self.texts, most=limits.segments)
        except ValueError as error:
            raise Malformed("malformed", str(error)) from error
        self.prompts = self._prompts()

    def contribution(self, columns: memoryview) -> Contribution:
        """Return the columns, split into groups."""
        prompted, sampled, written = sum(prompt[1] for prompt in self.prompts), sum(self.lengths), sum(self.texts)
        if prompted + sampled > self.limits.tokens or written > self.limits.text_bytes:
            raise Malformed("too-large", f"{prompted + sampled} tokens, {written} bytes of text")
        scored = self.segments.sampled()
        ids_end = 4 * (prompted + sampled)
        texts_begin = ids_end + 2 * sum(scored)
        if len(columns) != texts_begin + written:
            refuse(f"{len(columns)} bytes of columns, the header declares {texts_begin + written}")
        halves = np.frombuffer(columns[ids_end:texts_begin], dtype="<u2")
        if not bool((((halves >= _MINUS_ZERO) & (halves < _MINUS_INFINITY)) | (halves == 0)).all()):
            refuse("a log-probability is not finite or above zero")
        ids, logprobs = np.frombuffer(columns[4 * prompted : ids_end], dtype="<u4"), halves.view("<f2")
        blob = columns[texts_begin:]
        groups, prompt_at, at, scored_at, text_at, rollout = [], 0, 0, 0, 0, 0
        try:
            for question_id, prompt_length, count, messages in self.prompts:
                rollouts = []
                for _ in range(count):
                    length, size = self.lengths[rollout], self.texts[rollout]
                    text, segments = self.segments.split(rollout, bytes(blob[text_at : text_at + size]))
                    rollouts.append(
                        Rollout(
                            text=text,
                            token_ids=PackedNumbers(ids[at : at + length]),
                            logprobs=PackedNumbers(logprobs[scored_at : scored_at + scored[rollout]]),
                            finish_reason=FINISH_REASONS[self.finish[rollout]],
                            segments=segments,
                        )
                    )
                    at, scored_at, text_at = at + length, scored_at + scored[rollout], text_at + size
                    rollout += 1
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
                role=self.role,
            )
        except ValueError as error:
            # Text that is not UTF-8, a duplicate item, an item without a reference.
            raise Malformed("malformed", str(error)[:200]) from error

    def _string(self, value: Any, longest: int) -> str:
        if not isinstance(value, str) or len(value) > longest:
            refuse("expected a short text")
        return value

    @staticmethod
    def _count(value: Any, most: int) -> int:
        if type(value) is not int or not 0 <= value < most:
            refuse("expected a count")
        return value

    def _list(self, value: Any, most: int, length: int | None = None) -> list[Any]:
        if not isinstance(value, list) or len(value) > most or (length is not None and len(value) != length):
            refuse("expected a list")
        return value

    def _counts(self, name: str, most: int) -> list[int]:
        counts = self._list(self.fields.get(name), self.limits.rollouts)
        if counts and (set(map(type, counts)) != {int} or min(counts) < 0 or max(counts) > most):
            refuse("expected a count")
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
            messages = tuple(self._message(turn) for turn in self._list(turns, self.limits.messages))
            name, size = self._string(question_id, self.limits.string), self._count(length, self.limits.tokens + 1)
            if self._count(count, self.limits.rollouts + 1) > self.limits.rollouts_per_group:
                most = self.limits.rollouts_per_group
                raise Malformed("too-many-rollouts", f"{count} rollouts in a group, {most} at most")
            prompts.append((name, size, count, messages))
        if sum(prompt[2] for prompt in prompts) != len(self.lengths):
            refuse("prompts and rollouts do not agree")
        return prompts

    def _message(self, turn: Any) -> Message:
        role, content = self._list(turn, 2, 2)
        return Message(self._string(role, self.limits.string), self._string(content, self.limits.header_bytes))
