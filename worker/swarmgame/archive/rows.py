"""The rows of the archive: a finished round as a table, one rollout a row, contribution by contribution.

What another peer sent is kept as it came, also where it was refused. Beside the table stands the head of the round:
what describes a contribution as a whole, and the order of the external groups. Both together are enough to check the
authors' signatures (`signatures`) and to repeat the update (`contributions_of`, `rewards_of`). Invariant: numbers are
kept exactly; a text or a list of numbers that no update used is cut at `CELL` entries, and its question is named in
the head.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from swarmgame import bounded_json
from swarmgame.game.components import RolloutUse
from swarmgame.game.protocol import Collected, Origin
from swarmgame.game.state import (
    Contribution,
    FinishReason,
    GameState,
    Group,
    GroupKey,
    Message,
    Prompt,
    QuestionRef,
    Rewards,
    Rollout,
    Segment,
)
from swarmgame.game.verification import VerifiedRollouts

CELL = 65_536
"""Longest text (characters) and list (numbers) of a rollout that no update used."""

SCHEMA = pa.schema(
    [
        ("round", pa.int64()),
        ("author", pa.string()),
        ("own", pa.bool_()),
        ("author_round", pa.int64()),
        ("stage", pa.int32()),
        ("environment", pa.string()),
        ("role", pa.string()),
        ("question", pa.string()),
        ("reference", pa.string()),
        ("position", pa.int32()),
        ("prompt", pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))),
        ("prompt_ids", pa.list_(pa.uint32())),
        ("text", pa.string()),
        ("token_ids", pa.list_(pa.uint32())),
        ("logprobs", pa.list_(pa.float64())),
        ("segments", pa.list_(pa.struct([("tokens", pa.int64()), ("text", pa.string())]))),
        ("finish_reason", pa.string()),
        ("reward", pa.float64()),
        ("advantage", pa.float64()),
        ("weight", pa.float64()),
        ("outcome", pa.string()),
        ("announcement", pa.binary()),
    ]
)
"""Columns, in order. docs/guide/rollouts.md explains each."""

TRAINED, ZERO_ADVANTAGE, NOT_SCORED = "trained", "zero-advantage", "not-scored"
NOT_SELECTED, NOT_USED = "not-selected", "not-used"
"""Values of `outcome`, beside the reasons of the verification."""


@dataclass(frozen=True)
class StageRecord:
    """What was collected in one stage, and how it was verified."""

    collected: Collected
    verified: VerifiedRollouts


@dataclass(frozen=True)
class RoundRecord:
    """A finished round, as the observers see it.

    Args:
        state: with all contributions that passed, and the selected external groups.
        rewards: our own scores.
        stages: what was received.
        uses: how the update used each group; None where the trainer does not report it.
    """

    state: GameState
    rewards: Rewards
    stages: tuple[StageRecord, ...]
    uses: Mapping[GroupKey, Sequence[RolloutUse]] | None


Head = Mapping[str, Any]
"""JSON-like: `contributions`, one entry for each in the order of the rows, and `external`, keys in order."""


def round_rows(record: RoundRecord) -> tuple[Head, pa.Table]:
    """Return the head and the rows of a round: stage by stage our own contribution and then the received ones."""
    columns: dict[str, list[Any]] = {name: [] for name in SCHEMA.names}
    heads = []
    order = frozenset(record.state.external)
    for stage, received in enumerate(record.stages):
        own = record.state.own(stage)
        if own is not None:
            heads.append(_add(columns, record, order, own, stage, None, {}, 0))
        collected = received.collected
        origins: Sequence[Origin | None] = collected.origins or [None] * len(collected.contributions)
        arrivals = collected.arrivals or range(len(collected.contributions))
        for each in zip(collected.contributions, origins, received.verified.reasons, arrivals, strict=True):
            contribution, origin, reasons, arrival = each
            heads.append(_add(columns, record, order, contribution, stage, origin, reasons, arrival))
    table = pa.Table.from_arrays([_array(columns[field.name], field) for field in SCHEMA], schema=SCHEMA)
    return {"contributions": heads, "external": [list(key) for key in record.state.external]}, table


def _add(
    columns: Mapping[str, list[Any]],
    record: RoundRecord,
    external: frozenset[GroupKey],
    contribution: Contribution,
    collected_in: int,
    origin: Origin | None,
    reasons: Mapping[str, str],
    arrival: int,
) -> dict[str, Any]:
    """Add the rows of one contribution, and return its head."""
    own = contribution.peer == record.state.peer
    role = record.state.round.roles.get(contribution.peer, "")
    announcement = origin.announcement if origin is not None else None
    rows, cut = 0, []
    for group in contribution.groups:
        key = GroupKey(contribution.round, contribution.stage, contribution.peer, group.question_id)
        reason = reasons.get(group.question_id, "")
        usable = reason in ("", "words-only")
        in_update = usable and (own or key in external)
        limit = None if in_update else CELL
        if not in_update and _longest(group) > CELL:
            cut.append(group.question_id)
        rollouts = group.rollouts if limit is None else [_shortened(rollout, limit) for rollout in group.rollouts]
        count = len(rollouts)
        reference = contribution.references[group.question_id]
        rewards = record.rewards.get(key, ()) if usable else ()
        uses = record.uses.get(key) if record.uses is not None and in_update else None
        values: dict[str, list[Any]] = {
            "round": [record.state.round.number] * count,
            "author": [contribution.peer] * count,
            "own": [own] * count,
            "author_round": [contribution.round] * count,
            "stage": [contribution.stage] * count,
            "environment": [reference.environment] * count,
            "role": [role] * count,
            "question": [group.question_id] * count,
            "reference": [json.dumps([reference.config, reference.seed, reference.index])] * count,
            "position": list(range(count)),
            "prompt": [[(_utf8(m.role), _utf8(m.content[:limit])) for m in group.prompt.messages]] * count,
            "prompt_ids": [group.prompt.token_ids[:limit]] * count,
            "text": [_utf8(rollout.text) for rollout in rollouts],
            "token_ids": [rollout.token_ids for rollout in rollouts],
            "logprobs": [rollout.logprobs for rollout in rollouts],
            "segments": [[(each.tokens, _utf8(each.text)) for each in rollout.segments] for rollout in rollouts],
            "finish_reason": [str(rollout.finish_reason) for rollout in rollouts],
            "reward": [float(reward) for reward in rewards] if len(rewards) == count else [None] * count,
            "advantage": [use.advantage for use in uses] if uses else [None] * count,
            "weight": [use.weight for use in uses]
            if uses
            else [None if in_update and record.uses is None else 0.0] * count,
            "outcome": [reason or _outcome(record, in_update, uses[at] if uses else None) for at in range(count)],
            "announcement": [announcement] * count,
        }
        for name, added in values.items():
            columns[name].extend(added)
        rows += count
    return {
        "author": contribution.peer,
        "own": own,
        "author_round": contribution.round,
        "stage": contribution.stage,
        "collected_in": collected_in,
        "arrival": arrival,
        "tokenizer": contribution.tokenizer,
        "policy_version": contribution.policy_version,
        "role": contribution.role,
        "rows": rows,
        "cut": cut,
        "shards": [[name.hex(), count] for name, count in zip(origin.shards, origin.groups, strict=True)]
        if origin is not None
        else [],
        "index": base64.b64encode(origin.index).decode() if origin is not None else "",
    }


def _longest(group: Group) -> int:
    prompt = max((len(group.prompt.token_ids), *(len(message.content) for message in group.prompt.messages)))
    return max((prompt, *map(_size, group.rollouts)))


def _size(rollout: Rollout) -> int:
    """Return the length of the rollout's longest cell."""
    texts = sum(len(segment.text) for segment in rollout.segments)
    return max(len(rollout.text), len(rollout.token_ids), len(rollout.segments), texts)


def _shortened(rollout: Rollout, limit: int) -> Rollout:
    """Return a rollout whose cells are not longer than that; a transcript that is cut has no segments left."""
    if _size(rollout) <= limit:
        return rollout
    size = min(limit, len(rollout.logprobs))
    return Rollout(rollout.text[:limit], rollout.token_ids[:size], rollout.logprobs[:size], rollout.finish_reason)


def _outcome(record: RoundRecord, in_update: bool, use: RolloutUse | None) -> str:
    if not in_update:
        return NOT_SELECTED
    if record.uses is None:
        return TRAINED
    if use is None:
        return NOT_USED
    if use.advantage != use.advantage:
        return NOT_SCORED
    return TRAINED if use.weight != 0 or use.advantage != 0 else ZERO_ADVANTAGE


def _array(values: list[Any], field: pa.Field) -> pa.Array:
    """Return a column. Lists of numbers are joined as arrays: converting them one by one takes ten times as long."""
    if not pa.types.is_list(field.type) or pa.types.is_struct(field.type.value_type):
        return pa.array(values, type=field.type)
    kind = np.dtype(field.type.value_type.to_pandas_dtype())
    offsets = np.zeros(len(values) + 1, dtype=np.int32)
    np.cumsum([len(value) for value in values], out=offsets[1:])
    flat = np.fromiter((number for value in values for number in value), dtype=kind, count=int(offsets[-1]))
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(flat))


def _utf8(text: str) -> str:
    """Return a text that UTF-8 can hold, as other peers receive it."""
    return text if text.isascii() else text.encode(errors="replace").decode()


# ── and back


def contributions_of(head: Head, rows: pa.Table) -> Iterator[tuple[Head, Contribution, pa.Table]]:
    """Yield each contribution of a round with its head and its rows.

    Raises:
        ValueError: rows and head do not agree.
    """
    start = 0
    for each in head["contributions"]:
        part = rows.slice(start, each["rows"])
        start += each["rows"]
        yield each, _contribution(each, part), part
    if start != rows.num_rows:
        raise ValueError(f"{rows.num_rows} rows, and the head names {start}")


def _contribution(head: Head, rows: pa.Table) -> Contribution:
    rollouts: dict[str, list[Rollout]] = {}
    prompts: dict[str, Prompt] = {}
    references: dict[str, QuestionRef] = {}
    for row in rows.to_pylist():
        question = row["question"]
        if question not in prompts:
            messages = tuple(Message(**message) for message in row["prompt"])
            prompts[question] = Prompt(question, messages, tuple(row["prompt_ids"]))
            references[question] = QuestionRef(row["environment"], *bounded_json.loads(row["reference"]))
        numbers = tuple(row["token_ids"]), tuple(row["logprobs"])
        # An archive of an earlier release has no such column.
        segments = tuple(Segment(each["tokens"], each["text"]) for each in row.get("segments") or ())
        rollout = Rollout(row["text"], *numbers, FinishReason(row["finish_reason"]), segments)
        rollouts.setdefault(question, []).append(rollout)
    return Contribution(
        peer=head["author"],
        round=head["author_round"],
        stage=head["stage"],
        groups=tuple(Group(prompts[question], tuple(found)) for question, found in rollouts.items()),
        references=references,
        tokenizer=head["tokenizer"],
        policy_version=head["policy_version"],
        role=head.get("role", ""),  # an archive of an earlier release has none
    )


def rewards_of(rows: pa.Table) -> dict[GroupKey, list[float]]:
    """Return the rewards in these rows, for the groups that have some."""
    found: dict[GroupKey, list[float]] = {}
    names = ("author_round", "stage", "author", "question", "reward")
    for round, stage, author, question, reward in zip(*(rows[name].to_pylist() for name in names), strict=True):
        if reward is not None:
            found.setdefault(GroupKey(round, stage, author, question), []).append(reward)
    return found
