"""Announcements and heartbeats: small, signed, and harmless whatever they hold."""

from __future__ import annotations

import math
from dataclasses import replace
from hashlib import sha256
from typing import Any

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from swarmgame.game.protocol import Claim
from swarmgame.swarm.codec import encode
from swarmgame.swarm.identity import Identity, verify
from swarmgame.swarm.messages import (
    Rejected,
    make_announcement,
    make_heartbeat,
    make_index,
    parse_announcement,
    parse_heartbeat,
    parse_index,
)

ANN, BOB = Identity.named("ann"), Identity.named("bob")


def index_of(contribution: Any, shard_bytes: int = 1 << 20, claims: tuple[Claim, ...] = ()) -> bytes:
    return make_index(contribution, encode(contribution, "run", shard_bytes=shard_bytes), claims)


def test_an_index_says_of_each_shard_what_it_holds_and_what_is_claimed(contribution_of: Any) -> None:
    contribution = contribution_of(ANN.peer, groups=3, rollouts=2, tokens=5)
    claims = (Claim(0.5, True), Claim(1.0, False), Claim(math.nan, False))
    shards = encode(contribution, "run")
    (entry,) = parse_index(make_index(contribution, shards, claims))
    assert (entry.name, entry.size) == (shards[0].name, len(shards[0].data))
    assert (entry.groups, entry.spread, entry.mean, entry.tokens) == (3, 1, 0.75, 30)
    (unknown,) = parse_index(make_index(contribution, shards))
    assert unknown.spread == 0
    assert math.isnan(unknown.mean)
    with pytest.raises(ValueError, match="2 claims for 3 groups"):
        make_index(contribution, shards, claims[:2])


def test_a_small_index_travels_inside_and_a_large_one_by_its_hash(contribution_of: Any) -> None:
    contribution = contribution_of(ANN.peer, groups=30)
    for shard_bytes, inline in ((1 << 20, True), (10, False)):
        index = index_of(contribution, shard_bytes)
        message = make_announcement(
            "a-run-with-a-rather-long-name", ANN.peer, 2**31, 9, index, 1_900_000_000, ANN.sign
        ).message
        assert len(message) <= 512
        parsed = parse_announcement(message, "a-run-with-a-rather-long-name", verify)
        assert (parsed.peer, parsed.round, parsed.stage, parsed.expires) == (ANN.peer, 2**31, 9, 1_900_000_000)
        assert parsed.root == sha256(index).digest()
        assert (parsed.index, parsed.index_bytes) == (index if inline else b"", len(index))


def test_an_announcement_is_believed_for_its_run_and_its_signer_only(contribution_of: Any) -> None:
    index = index_of(contribution_of(ANN.peer))
    message = make_announcement("run", ANN.peer, 0, 0, index, 10, ANN.sign).message
    parse_announcement(message, "run", verify)
    fields = msgpack.unpackb(message)
    forged = [
        (message, "another-run"),
        (make_announcement("run", ANN.peer, 0, 0, index, 10, BOB.sign).message, "run"),
        *(
            (msgpack.packb([*fields[:at], value, *fields[at + 1 :]]), "run")
            for at, value in ((1, BOB.peer), (2, 1), (3, 1), (4, 11))
        ),
        (msgpack.packb([*fields[:6], index[:-1] + b"\x00", fields[7]]), "run"),
    ]
    for wrong, run in forged:
        with pytest.raises(Rejected, match="bad-signature"):
            parse_announcement(wrong, run, verify)


def test_a_heartbeat_cannot_stand_for_an_announcement_nor_be_changed() -> None:
    heartbeat = make_heartbeat("run", ANN.peer, 3, 1, 99.5, ANN.sign, addresses=["/ip4/10.0.0.1/tcp/4001"] * 9)
    assert len(heartbeat.message) <= 512
    parsed = parse_heartbeat(heartbeat.message, "run", verify)
    assert parsed == heartbeat
    assert len(parsed.addresses) == 4
    packed, signature = msgpack.unpackb(heartbeat.message)
    fields = msgpack.unpackb(packed)
    for at, value in ((1, BOB.peer), (2, 4), (4, 1e9), (6, True)):
        with pytest.raises(Rejected, match="bad-signature"):
            parse_heartbeat(
                msgpack.packb([msgpack.packb([*fields[:at], value, *fields[at + 1 :]]), signature]), "run", verify
            )
    with pytest.raises(Rejected, match="bad-signature"):
        parse_heartbeat(heartbeat.message, "other", verify)
    with pytest.raises(Rejected, match="malformed"):
        parse_announcement(heartbeat.message, "run", verify)


@given(
    data=st.binary(max_size=600),
    bits=st.lists(st.integers(0, 4000), max_size=3),
    kind=st.sampled_from(["a", "h", "i", "random"]),
)
@settings(max_examples=400, deadline=None)
def test_no_bytes_raise_anything_but_rejected(contribution_of: Any, data: bytes, bits: list[int], kind: str) -> None:
    index = index_of(contribution_of(ANN.peer))
    valid = {
        "a": make_announcement("run", ANN.peer, 1, 1, index, 10, ANN.sign).message,
        "h": make_heartbeat("run", ANN.peer, 1, 1, 1.0, ANN.sign).message,
        "i": index,
        "random": data,
    }[kind]
    damaged = bytearray(valid)
    for bit in bits:
        if damaged:
            damaged[bit // 8 % len(damaged)] ^= 1 << bit % 8
    for parse in (
        lambda m: parse_announcement(m, "run", verify),
        lambda m: parse_heartbeat(m, "run", verify),
        parse_index,
    ):
        try:
            parsed = parse(bytes(damaged))
        except Rejected:
            continue
        assert kind == "i" or bytes(damaged) == valid or isinstance(parsed, tuple)


@pytest.mark.parametrize("value", [None, -1, 2**70, 1.5, True, "x" * 65, "", b"x", [], [1]])
def test_any_field_of_another_kind_is_rejected(contribution_of: Any, value: Any) -> None:
    message = make_announcement("run", ANN.peer, 1, 1, index_of(contribution_of(ANN.peer)), 10, ANN.sign).message
    fields = msgpack.unpackb(message)
    for at in range(8):
        try:
            changed = msgpack.packb([*fields[:at], value, *fields[at + 1 :]])
        except OverflowError:
            return
        with pytest.raises(Rejected):
            parse_announcement(changed, "run", verify)


def test_a_message_that_is_too_large_is_not_read() -> None:
    for parse in (parse_announcement, parse_heartbeat):
        with pytest.raises(Rejected, match="too-large"):
            parse(b"\xc6" + bytes(600), "run", verify)
    with pytest.raises(Rejected, match="too-large"):
        parse_index(bytes((1 << 20) + 1))


def test_equal_contributions_have_equal_roots_and_different_ones_different_roots(contribution_of: Any) -> None:
    contribution = contribution_of(ANN.peer)
    once, again = (
        make_announcement("run", ANN.peer, 0, 0, index_of(contribution), expires, ANN.sign) for expires in (1, 2)
    )
    assert once.root == again.root
    other = make_announcement("run", ANN.peer, 0, 0, index_of(replace(contribution, policy_version=8)), 1, ANN.sign)
    assert other.root != once.root
