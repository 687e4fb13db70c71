"""Two live processes with one key are noticed by both; a restart is not taken for one."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest
from exchange_contract import gather
from swarms import MemorySwarm

from swarmgame.errors import ExitCode, Temporary, exit_code_of
from swarmgame.swarm.identity import Identity
from swarmgame.swarm.key_watch import KeyWatch
from swarmgame.swarm.messages import Heartbeat, make_heartbeat

ANN = Identity.named("ann")
OURS, THEIRS = b"ours", b"theirs"


def beat(expires: float, process: bytes = THEIRS, *, leaving: bool = False) -> Heartbeat:
    return make_heartbeat(
        "run", ANN.peer, 0, 0, expires, ANN.sign, addresses=["/ip4/192.0.2.9/tcp/4"], process=process, leaving=leaving
    )


def watched(*beats: tuple[float, Heartbeat], joining_until: float = -1.0) -> tuple[KeyWatch, list[str]]:
    watch = KeyWatch(OURS, 2.5)
    warnings = [watch.observe(heartbeat, at, joining=at <= joining_until) for at, heartbeat in beats]
    return watch, [warning for warning in warnings if warning]


TWICE = ((0.0, beat(15.0)), (5.0, beat(20.0)), (10.0, beat(25.0)))


def test_the_later_process_must_end_and_the_first_one_warns() -> None:
    later, told = watched(*TWICE, joining_until=0.0)
    assert later.must_end
    assert told == [later.must_end]
    assert "was in the swarm first" in later.must_end
    assert "/ip4/192.0.2.9/tcp/4" in later.must_end
    assert "key of its own (--identity FILE" in later.must_end
    first, told = watched(*TWICE)
    assert first.must_end == ""
    assert len(told) == 1
    assert "came later" in told[0]


@pytest.mark.parametrize(
    "beats",
    [
        TWICE[:1] * 9,
        TWICE[:2],
        [(at, beat(15.0 + at, OURS)) for at in (0.0, 5.0, 10.0, 15.0)],
        [(0.0, beat(15.0)), (5.0, beat(14.0)), (10.0, beat(13.0)), (15.0, beat(12.0))],
        [(0.0, beat(15.0)), (0.1, beat(16.0)), (0.2, beat(17.0)), (0.3, beat(18.0))],
        [(0.0, beat(15.0)), (0.1, beat(30.0, leaving=True)), (5.0, beat(20.0)), (10.0, beat(25.0)), (15.0, beat(29.0))],
    ],
    ids=["one heartbeat", "one later", "our own", "earlier ones", "at once", "it has left"],
)
def test_last_heartbeats_of_the_process_before_are_no_second_process(beats: list[tuple[float, Heartbeat]]) -> None:
    watch, told = watched(*beats, joining_until=100.0)
    assert (watch.must_end, told) == ("", [])


@pytest.fixture
def swarm() -> Iterator[MemorySwarm]:
    made = MemorySwarm()
    yield made
    made.close()


def test_both_processes_of_one_key_notice_it_and_the_later_one_ends(
    swarm: MemorySwarm, caplog: pytest.LogCaptureFixture
) -> None:
    first, bob = swarm.peer("ann"), swarm.peer("bob", min_replicas=2)
    swarm.pass_time(6.0)
    swarm.hub.shares_keys = True
    with caplog.at_level(logging.WARNING, "swarmgame.swarm.discovery"):
        second = swarm.peer("ann", min_replicas=2)
        waiting = swarm.begin(second, 0, 0, gather(1.0, 600.0))
        swarm.until(waiting.done, 60.0)
    error = waiting.exception()
    assert isinstance(error, Temporary)
    assert exit_code_of(error) is ExitCode.TEMPORARY
    assert "another process runs with this peer's key" in str(error)
    second.leave()
    swarm.pass_time(6.0)
    assert [member.peer for member in first.membership()] == ["ann", "bob"]
    assert [member.peer for member in bob.membership()] == ["ann", "bob"]
    assert "came later" in caplog.text
    assert first.collect(0, 0, gather(0.01)).outcomes["same-key"] == 1


@pytest.mark.parametrize("killed", [True, False])
def test_a_restarted_peer_is_not_taken_for_a_second_process(swarm: MemorySwarm, killed: bool) -> None:
    ann, bob = swarm.peer("ann"), swarm.peer("bob", min_replicas=2)
    swarm.pass_time(11.0)
    if killed:
        swarm.hub.kill("ann")
    else:
        ann.leave()
    again = swarm.peer("ann", min_replicas=2)
    swarm.pass_time(60.0)
    assert [member.peer for member in again.membership()] == ["ann", "bob"]
    assert again.collect(0, 0, gather(0.01)).outcomes.get("same-key", 0) == 0
    assert [member.peer for member in bob.membership()] == ["ann", "bob"]
