"""Bodies that are wrong, late, or come at the second try, in virtual time."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from contributions import make_contribution
from floods import Flooded, Make, announce
from paced_swarms import PacedSwarm, making
from swarms import RUN

from swarmgame.game.protocol import ClosedBy, Exchange
from swarmgame.swarm.codec import encode
from swarmgame.swarm.transport import Unreachable


@pytest.fixture
def flooded() -> Iterator[Make]:
    with making(Flooded) as make:
        yield make


@pytest.mark.parametrize("wrong", [0, 1, 2])
def test_one_wrong_shard_leaves_out_its_contribution_and_the_stage_goes_on(flooded: Make, wrong: int) -> None:
    swarm = flooded(exchange=Exchange.PULL)
    swarm.play()
    rogue = swarm.stranger("rogue")
    made = make_contribution("rogue", 1)
    message = announce(rogue, made, shard_bytes=1)
    shards = encode(made, RUN, shard_bytes=1)
    assert len(shards) == 3
    rogue.bodies[shards[wrong].name] = b"wrong"
    rogue.send_announcement("ann", message)
    first, _ = swarm.play()
    assert first.closed_by is ClosedBy.QUORUM
    assert [each.peer for each in first.contributions] == ["bob"]
    assert first.outcomes["bad-hash"] == 1
    second, _ = swarm.play()
    assert [each.peer for each in second.contributions] == ["bob"], "it is not offered again as a late one"


def test_a_body_that_comes_at_the_second_try_costs_its_author_nothing(
    flooded: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    swarm = flooded(anchors=frozenset(), inline_bytes=0)
    transport = swarm.ann._node.transport
    fetch, failures = transport.fetch, 0

    async def fail_once(peer: str, name: bytes, limit: int, seconds: float) -> bytes | None:
        nonlocal failures
        failures += 1
        if failures == 1:
            raise Unreachable(peer)
        return await fetch(peer, name, limit, seconds)

    monkeypatch.setattr(transport, "fetch", fail_once)
    for round in range(3):
        for peer in (swarm.ann, swarm.bob):
            peer.publish(make_contribution(peer.peer, round))
        playing = [swarm.swarm.begin(peer, round, 0, swarm.policy) for peer in (swarm.ann, swarm.bob)]
        swarm.swarm.pass_time(3.0)
        assert [len(each.result(60).contributions) for each in playing] == [1, 1]
        assert swarm.ann._node.members.counted.standing("bob") == "provisional"
    assert failures > 1


def test_a_newcomer_whose_bodies_take_longer_than_a_stage_waits_for_them_comes_to_count() -> None:
    swarm = PacedSwarm(anchors=("ann", "bob", "dan"), exchange=Exchange.PULL, external=4)
    try:
        swarm.hub.body_seconds = lambda holder, receiver: 0.3 if holder == "newcomer" else 0.02
        swarm.add("ann", "bob", "dan")
        swarm.pass_time(4.5)
        swarm.add("newcomer", work=0.5)
        swarm.pass_time(16.0)
        for peer in swarm.peers[:3]:
            assert peer.standing("newcomer") == "counted"
            assert all("newcomer" in [each.peer for each in one.contributions] for one in peer.collected[-5:])
    finally:
        swarm.close()
