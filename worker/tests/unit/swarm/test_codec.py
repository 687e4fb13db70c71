"""Rollouts as bytes: nothing is lost but accuracy, and no bytes do harm."""

from __future__ import annotations

import struct
import tracemalloc
from dataclasses import replace
from hashlib import sha256
from typing import Any

import msgpack
import numpy as np
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from swarmgame.game.state import Contribution, FinishReason, Group, Message, Prompt, QuestionRef, Rollout, Segment
from swarmgame.swarm.codec import Limits, Malformed, decode, decode_shard, encode

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
ids = st.integers(0, 2**32 - 1)


@st.composite
def transcripts(draw: st.DrawFn) -> Rollout:
    """Rollouts of several turns; the last one may be an observation that nobody reads."""
    numbers = draw(st.lists(st.integers(1, 3), min_size=2, max_size=5))
    if len(numbers) % 2 == 0 and draw(st.booleans()):
        numbers[-1] = 0
    segments = tuple(Segment(number, draw(texts)) for number in numbers)
    sampled = sum(numbers[::2])
    return Rollout(
        segments[(len(numbers) - 1) // 2 * 2].text,
        tuple(draw(st.lists(ids, min_size=sum(numbers), max_size=sum(numbers)))),
        tuple(draw(st.lists(st.floats(-70_000, 0), min_size=sampled, max_size=sampled))),
        draw(st.sampled_from(FinishReason)),
        segments,
    )


@st.composite
def one_shots(draw: st.DrawFn) -> Rollout:
    tokens = draw(st.lists(st.tuples(ids, st.floats(-70_000, 0)), max_size=8))
    return Rollout(
        draw(texts), tuple(i for i, _ in tokens), tuple(p for _, p in tokens), draw(st.sampled_from(FinishReason))
    )


@st.composite
def contributions(draw: st.DrawFn) -> Contribution:
    references = draw(
        st.lists(
            st.builds(QuestionRef, texts, texts, st.integers(0, 2**62 - 1), st.integers(0, 2**40)),
            max_size=5,
            unique_by=lambda reference: reference.id,
        )
    )
    used = references[: draw(st.integers(0, len(references)))]
    groups = tuple(
        Group(
            Prompt(
                reference.id,
                tuple(draw(st.lists(st.builds(Message, texts, texts), max_size=3))),
                tuple(draw(st.lists(ids, max_size=5))),
            ),
            tuple(draw(st.lists(one_shots() | transcripts(), max_size=4))),
        )
        for reference in used
    )
    count = st.integers(0, 2**40)
    return Contribution(
        draw(texts), draw(count), draw(count), groups, {r.id: r for r in references}, draw(texts), draw(count)
    )


def as_f16(contribution: Contribution) -> Contribution:
    def rounded(rollout: Rollout) -> Rollout:
        clipped = np.clip(np.array(rollout.logprobs, dtype=np.float64), -65504.0, 0.0)
        return replace(rollout, logprobs=tuple(clipped.astype(np.float16).astype(np.float64).tolist()))

    groups = tuple(replace(group, rollouts=tuple(rounded(r) for r in group.rollouts)) for group in contribution.groups)
    return replace(contribution, groups=groups)


@given(contribution=contributions(), shard_bytes=st.sampled_from([1, 400, 1 << 20]))
@settings(max_examples=150, deadline=None)
def test_what_is_decoded_is_what_was_encoded_up_to_the_accuracy_of_f16(
    contribution: Contribution, shard_bytes: int
) -> None:
    shards = encode(contribution, "run", shard_bytes=shard_bytes)
    assert decode([shard.data for shard in shards]) == as_f16(contribution)
    assert all(shard.name == sha256(shard.data).digest() for shard in shards)
    assert [position for shard in shards for position in shard.groups] == list(range(len(contribution.groups)))
    assert encode(contribution, "run", shard_bytes=shard_bytes) == shards


def test_payloads_are_not_sent(contribution_of: Any) -> None:
    contribution = contribution_of("ann")
    secret = b"a payload that must not travel"
    with_payload = replace(
        contribution, groups=tuple(replace(g, prompt=replace(g.prompt, payload=secret)) for g in contribution.groups)
    )
    assert encode(with_payload, "run") == encode(contribution, "run")


def test_groups_are_cut_into_shards_of_about_the_size_asked_for_and_never_split(contribution_of: Any) -> None:
    contribution = contribution_of("ann", groups=40, rollouts=4, tokens=300)
    shards = encode(contribution, "run", shard_bytes=64 << 10)
    assert 3 < len(shards) < 10
    assert max(len(shard.data) for shard in shards) < 70 << 10
    assert [decode_shard(shard.data).contribution.groups[0].question_id for shard in shards] == [
        contribution.groups[s.groups[0]].question_id for s in shards
    ]


def test_repetitive_text_is_not_taken_for_a_zip_bomb() -> None:
    reference = QuestionRef("sums", "c", 1, 1)
    rollout = Rollout("a" * 200_000, (7,) * 200_000, (-0.5,) * 200_000)
    contribution = Contribution("ann", 0, 0, (Group(Prompt(reference.id), (rollout,)),), {reference.id: reference})
    assert decode([shard.data for shard in encode(contribution, "run")]) == contribution


def test_texts_that_are_not_unicode_are_repaired_before_they_are_sent() -> None:
    reference = QuestionRef("sums", "c", 1, 1)
    group = Group(Prompt(reference.id, (Message("user", "a\ud800b"),)), (Rollout("c\udfffd"),))
    decoded = decode(
        [shard.data for shard in encode(Contribution("ann", 0, 0, (group,), {reference.id: reference}), "run")]
    )
    assert decoded.groups[0].prompt.messages[0].content == "a?b"
    assert decoded.groups[0].rollouts[0].text == "c?d"


def test_an_invalid_contribution_is_refused_before_it_is_sent(contribution_of: Any) -> None:
    contribution = contribution_of("ann")
    for value in (float("nan"), float("-inf"), float("inf")):
        bad = replace(contribution.groups[0].rollouts[0], token_ids=(1,), logprobs=(value,))
        with pytest.raises(ValueError, match="not finite"):
            encode(replace(contribution, groups=(replace(contribution.groups[0], rollouts=(bad,)),)), "run")
    with pytest.raises(ValueError, match="reference of question"):
        encode(replace(contribution, groups=(), references={"0": QuestionRef("sums", "c", 1, 1)}), "run")


# ── untrusted input
def plain_shard(contribution: Contribution) -> bytes:
    """A shard's content, not compressed, so that its parts can be tampered with."""
    data = encode(contribution, "run")[0].data
    return zstandard.ZstdDecompressor().decompress(data[1:]) if data[:1] == b"\x01" else data[1:]


def taken_apart(contribution: Contribution) -> tuple[dict[str, Any], bytes]:
    plain = plain_shard(contribution)
    (size,) = struct.unpack_from("<I", plain, 4)
    return msgpack.unpackb(plain[8 : 8 + size]), plain[8 + size :]


def put_together(header: Any, columns: bytes) -> bytes:
    packed = header if isinstance(header, bytes) else msgpack.packb(header)
    return b"\x00SGR1" + struct.pack("<I", len(packed)) + packed + columns


def refused(data: bytes, limits: Limits | None = None) -> str:
    with pytest.raises(Malformed) as caught:
        decode_shard(data, limits)
    return caught.value.reason


@given(
    data=st.binary(max_size=200), head=st.sampled_from([b"", b"\x00", b"\x01", b"\x00SGR1", b"\x01\x28\xb5\x2f\xfd"])
)
@settings(max_examples=300, deadline=None)
def test_random_bytes_are_refused(data: bytes, head: bytes) -> None:
    refused(head + data)


@given(seed=st.randoms(use_true_random=False), packed=st.booleans())
@settings(max_examples=300, deadline=None)
def test_a_damaged_shard_is_refused_or_still_agrees_with_itself(contribution_of: Any, seed: Any, packed: bool) -> None:
    contribution = contribution_of("ann")
    data = bytearray(encode(contribution, "run")[0].data if packed else b"\x00" + plain_shard(contribution))
    for _ in range(seed.randrange(1, 4)):
        data[seed.randrange(len(data))] ^= 1 << seed.randrange(8)
    if seed.random() < 0.3:
        del data[seed.randrange(len(data)) :]
    try:
        decoded = decode_shard(bytes(data)).contribution
    except Malformed:
        return
    assert decode([shard.data for shard in encode(decoded, "run")]) == decoded


nested = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats()
    | st.binary(max_size=4)
    | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)


@given(
    field=st.sampled_from(
        ["schema", "run", "peer", "round", "policy", "references", "prompts", "lengths", "texts", "finish"]
    ),
    value=nested,
)
@settings(max_examples=300, deadline=None)
def test_a_header_with_any_other_value_in_any_field_is_refused_or_harmless(
    contribution_of: Any, field: str, value: Any
) -> None:
    header, columns = taken_apart(contribution_of("ann"))
    try:
        decode_shard(put_together(header | {field: value}, columns))
    except Malformed as error:
        assert error.reason in ("malformed", "too-large")  # noqa: PT017 — harmless values do not raise


@pytest.mark.parametrize(
    "header",
    [
        b"",
        b"\xc1",
        b"\x90",
        b"\xdd\xff\xff\xff\xff",
        b"\xdf\xff\xff\xff\xff",
        b"\xc6\x40\x00\x00\x00",
        b"\x91" * 100_000,
        b"\xc7\xff\x01",
        b"\x81\x90\x01",
    ],
    ids=["empty", "reserved", "array", "huge-array", "huge-map", "gibibyte", "deep", "extension", "list-as-key"],
)
def test_a_crafted_header_is_refused(header: bytes) -> None:
    assert refused(put_together(header, b"")) == "malformed"


def test_the_columns_must_be_as_long_as_the_header_says(contribution_of: Any) -> None:
    header, columns = taken_apart(contribution_of("ann"))
    for wrong in (columns[:-1], columns + b"x", b""):
        assert refused(put_together(header, wrong)) == "malformed"
    assert refused(put_together(header | {"lengths": [2**31] * len(header["lengths"])}, columns)) == "malformed"
    assert refused(put_together(header | {"lengths": [8 << 20] * len(header["lengths"])}, columns)) == "too-large"


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf"), 0.25])
def test_an_invalid_log_probability_is_refused(contribution_of: Any, value: float) -> None:
    contribution = contribution_of("ann", groups=1, rollouts=1, tokens=1)
    header, columns = taken_apart(contribution)
    at = 4 * 3 + 4
    assert refused(put_together(header, columns[:at] + np.float16(value).tobytes() + columns[at + 2 :])) == "malformed"


def test_of_all_f16_just_those_finite_and_not_above_zero_are_log_probabilities(contribution_of: Any) -> None:
    header, columns = taken_apart(contribution_of("ann", groups=1, rollouts=1, tokens=1))
    at = 4 * 3 + 4
    for bits in (
        0x0000,
        0x0001,
        0x3C00,
        0x7BFF,
        0x7C00,
        0x7E00,
        0x8000,
        0x8001,
        0xBC00,
        0xFBFF,
        0xFC00,
        0xFC01,
        0xFFFF,
    ):
        value = float(np.array([bits], dtype=np.uint16).view(np.float16)[0])
        data = put_together(header, columns[:at] + bits.to_bytes(2, "little") + columns[at + 2 :])
        if np.isfinite(value) and value <= 0:
            assert decode_shard(data).contribution.groups[0].rollouts[0].logprobs == (value,)
        else:
            assert refused(data) == "malformed"


def test_text_that_is_not_utf8_a_duplicate_item_and_an_item_without_reference_are_refused(contribution_of: Any) -> None:
    header, columns = taken_apart(contribution_of("ann"))
    assert refused(put_together(header, columns[:-1] + b"\xff")) == "malformed"
    twice = [header["prompts"][0], *header["prompts"][:-1]]
    assert refused(put_together(header | {"prompts": twice}, columns)) == "malformed"
    assert refused(put_together(header | {"references": header["references"][1:]}, columns)) == "malformed"


def test_every_limit_is_kept(contribution_of: Any) -> None:
    contribution = contribution_of("ann", groups=4, rollouts=4, tokens=64)
    data = encode(contribution, "run")[0].data
    decode_shard(data)
    for limits, reason in (
        (Limits(shard_bytes=100), "too-large"),
        (Limits(expanded_bytes=100), "too-large"),
        (Limits(expansion=1, expansion_floor=100), "too-large"),
        (Limits(header_bytes=100), "too-large"),
        (Limits(tokens=63), "malformed"),
        (Limits(tokens=1000), "too-large"),
        (Limits(text_bytes=100), "too-large"),
        (Limits(groups=3), "malformed"),
        (Limits(rollouts=15), "malformed"),
        (Limits(string=3), "malformed"),
        (Limits(messages=1), "malformed"),
    ):
        assert refused(data, limits) == reason, limits


def test_a_zip_bomb_allocates_no_memory() -> None:
    gibibyte = 1 << 30
    chunk = bytes(1 << 20)
    squeezer = zstandard.ZstdCompressor(level=1).compressobj(size=gibibyte)
    bomb = b"\x01" + b"".join(squeezer.compress(chunk) for _ in range(1024)) + squeezer.flush()
    small = zstandard.ZstdCompressor(level=1, write_content_size=False).compress(bytes(1 << 24))
    lying = b"\x01" + struct.pack("<IBQ", 0xFD2FB528, 0xE0, gibibyte) + b"\x01\x00\x00"
    tracemalloc.start()
    reasons = [refused(bomb), refused(b"\x01" + small), refused(lying), refused(b"\x00SGR1\xff\xff\xff\x3f")]
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert reasons == ["too-large", "malformed", "too-large", "too-large"]
    assert peak < 4 << 20


def test_bytes_after_the_frame_are_refused(contribution_of: Any) -> None:
    data = encode(contribution_of("ann", tokens=100), "run")[0].data
    assert data[:1] == b"\x01"
    assert refused(data + b"more") == "malformed"


def test_shards_of_different_contributions_are_not_merged(contribution_of: Any) -> None:
    ann, bob = encode(contribution_of("ann"), "run")[0].data, encode(contribution_of("bob"), "run")[0].data
    for shards in ([ann, bob], [ann, ann], []):
        with pytest.raises(Malformed):
            decode(shards)
