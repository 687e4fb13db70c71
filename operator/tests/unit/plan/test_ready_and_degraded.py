"""Ready, Degraded, Registered and unhealthy peers."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from plan_fixtures import (
    DEFAULTS,
    condition,
    failed_pod,
    peer_pod,
    ready_pod,
    reported,
    running,
    settled,
    starting_pod,
    valid_game,
    waiting_pod,
)

from swarmgame_operator.plan import Plan, build_plan
from swarmgame_operator.snapshot import ChainFacts, ContainerFacts, PodFacts

STUCK = PodFacts("sums-peers-0-a", "peer", 0, unschedulable="0/1 nodes are available: 1 Insufficient nvidia.com/gpu.")
INITIALIZING = peer_pod(
    0, containers=(ContainerFacts("initializer"), ContainerFacts("peer", waiting="PodInitializing"))
)
INITIALIZED = peer_pod(
    0, containers=(ContainerFacts("initializer", exit_code=0), ContainerFacts("peer", waiting="PodInitializing"))
)


def seen(*pods: PodFacts, spec: dict[str, Any] | None = None, bootnode: int = 1, **job: Any) -> Plan:
    """Plan a game that was ready and has these pods now."""
    resource, observed = running(valid_game(spec))
    assert observed.job is not None
    workloads = tuple(replace(each, ready=bootnode) for each in observed.workloads)
    return build_plan(
        resource, replace(observed, pods=pods, workloads=workloads, job=replace(observed.job, **job)), DEFAULTS
    )


TWO = {"peers": {"replicas": 3, "minReplicas": 2}}
READY: list[tuple[tuple[PodFacts, ...], int, tuple[str, str]]] = [
    ((ready_pod(0), ready_pod(1)), 1, ("True", "PeersReady")),
    ((ready_pod(0), ready_pod(1)), 0, ("False", "WaitingForBootnode")),
    ((ready_pod(0), replace(ready_pod(1), terminating=True)), 1, ("False", "WaitingForPeers")),
    ((), 1, ("False", "WaitingForPeers")),
    ((INITIALIZING,), 1, ("False", "Initializing")),
    ((INITIALIZED,), 1, ("False", "WaitingForPeers")),
    ((ready_pod(1), STUCK), 1, ("False", "Unschedulable")),
    ((ready_pod(1), ready_pod(2), STUCK), 1, ("True", "PeersReady")),
    ((replace(STUCK, terminating=True),), 1, ("False", "WaitingForPeers")),
    ((replace(STUCK, role="bootnode", index=None),), 0, ("False", "Unschedulable")),
]


@pytest.mark.parametrize(("pods", "bootnode", "expected"), READY)
def test_a_swarm_is_ready_with_enough_peers_and_otherwise_the_first_obstacle_is_named(
    pods: tuple[PodFacts, ...], bootnode: int, expected: tuple[str, str]
) -> None:
    assert reported(seen(*pods, spec=TWO, bootnode=bootnode))["Ready"] == expected


def test_a_swarm_without_a_bootnode_does_not_wait_for_one() -> None:
    assert reported(seen(ready_pod(0), spec={"bootnode": {"enabled": False}}))["Ready"] == ("True", "PeersReady")


def test_a_swarm_of_registered_peers_is_ready_only_when_they_are_registered() -> None:
    spec = {"coordination": {"mode": "Dev"}, "communication": {"admission": "Registered"}}
    resource, observed = running(valid_game(spec))
    for registered, expected in ((0, "False"), (4, "True")):
        found = build_plan(resource, replace(observed, chain=ChainFacts(registered=registered)), DEFAULTS)
        assert reported(found)["Ready"][0] == expected


DEGRADED: list[tuple[tuple[PodFacts, ...], str]] = [
    ((ready_pod(0), starting_pod(1)), "AsExpected"),
    ((ready_pod(0), STUCK), "AsExpected"),
    ((waiting_pod(0, "ContainerCreating"),), "AsExpected"),
    ((waiting_pod(0, "ErrImagePull"),), "ImagePullFailed"),
    ((waiting_pod(0, "InvalidImageName"),), "ImagePullFailed"),
    ((waiting_pod(0, "ImagePullBackOff", container="initializer"),), "ImagePullFailed"),
    ((replace(waiting_pod(0, "ErrImagePull"), role="bootnode", index=None),), "ImagePullFailed"),
    ((waiting_pod(0, "CreateContainerConfigError", "secret not found"),), "PeersFailing"),
    ((waiting_pod(0, "CrashLoopBackOff"),), "PeersFailing"),
    ((failed_pod(0, 1), starting_pod(0)), "PeersFailing"),
    ((failed_pod(0, 1), ready_pod(0)), "AsExpected"),
    ((failed_pod(0, 137, reason="OOMKilled"), starting_pod(0)), "OutOfMemory"),
    ((failed_pod(0, 137, reason="OOMKilled"), ready_pod(0)), "AsExpected"),
    ((replace(failed_pod(0, 143), disrupted=True), starting_pod(0)), "AsExpected"),
    ((replace(failed_pod(0, 143), terminating=True), starting_pod(0)), "AsExpected"),
    ((waiting_pod(1, "ImagePullBackOff"), failed_pod(0, 137, reason="OOMKilled")), "ImagePullFailed"),
]


@pytest.mark.parametrize(("pods", "expected"), DEGRADED)
def test_a_game_is_degraded_by_failures_until_they_are_over(pods: tuple[PodFacts, ...], expected: str) -> None:
    assert reported(seen(*pods, spec={"peers": {"replicas": 2}}))["Degraded"][1] == expected


def test_a_peer_that_failed_for_good_degrades_the_game_for_good() -> None:
    found = seen(ready_pod(0), ready_pod(2), ready_pod(3), failed_indexes="1")
    assert reported(found)["Degraded"] == ("True", "PeersFailing")
    (peer,) = found.status.unhealthy_peers
    assert (peer.index, peer.reason) == (1, "FailedForGood")


def test_unhealthy_peers_are_listed_by_index_with_their_messages_and_sixteen_at_most() -> None:
    pods = tuple(failed_pod(index, 75, f"peer {index} gave up") for index in reversed(range(20)))
    found = seen(*pods, spec={"peers": {"replicas": 20}})
    peers = found.status.unhealthy_peers
    assert [each.index for each in peers] == list(range(16))
    assert peers[3].message == "peer ended with exit code 75: peer 3 gave up"
    degraded = condition(found, "Degraded")
    assert degraded is not None
    assert degraded.message.startswith("20 of 20 peers are failing. Peer 0, Error: peer ended with exit code 75")


def test_an_untrusted_message_is_cut_and_cannot_break_the_status() -> None:
    found = seen(failed_pod(0, 1, "x\n" * 5_000))
    assert all(len(each.message) <= 2_000 and "\n" not in each.message for each in found.status.conditions)
    assert len(found.status.unhealthy_peers[0].message) <= 1_000


def test_peers_are_counted_by_state() -> None:
    pods = (
        ready_pod(0),
        starting_pod(1),
        peer_pod(2, phase="Running", terminating=True),
        failed_pod(3, 1),
        peer_pod(4, phase="Succeeded"),
    )
    found = seen(*pods, spec={"peers": {"replicas": 6}}, completed_indexes="4", failed_indexes="3")
    counts = found.status.peers
    assert (counts.desired, counts.active, counts.ready, counts.succeeded, counts.failed, counts.terminating) == (
        6,
        2,
        1,
        1,
        1,
        1,
    )
    assert found.status.replicas == 2
    assert found.status.selector == "swarmgame.dev/game=sums,swarmgame.dev/role=peer"


def chain(facts: ChainFacts | None, *, begun: bool, round: int = 0) -> dict[str, tuple[str, str]]:
    spec = {"coordination": {"mode": "Dev"}, "peers": {"replicas": 3, "minReplicas": 2}}
    resource, observed = running(valid_game(spec)) if begun else settled(valid_game(spec))
    progress = resource.status.progress.model_copy(update={"round": round})
    resource = replace(resource, status=resource.status.model_copy(update={"progress": progress}))
    return reported(build_plan(resource, replace(observed, chain=facts), DEFAULTS))


REGISTERED: list[tuple[ChainFacts | None, tuple[str, str]]] = [
    (None, ("False", "RPCUnavailable")),
    (ChainFacts(registered=1), ("False", "PartlyRegistered")),
    (ChainFacts(registered=2), ("True", "PartlyRegistered")),
    (ChainFacts(registered=9), ("True", "AllRegistered")),
    (ChainFacts(registered=3, problem="timeout", wallet_empty=True), ("True", "AllRegistered")),
    (ChainFacts(registered=1, problem="timeout"), ("False", "RPCUnavailable")),
    (ChainFacts(chain_id=5), ("False", "WrongChain")),
    (ChainFacts(chain_id=5, wallet_empty=True, problem="x"), ("False", "WrongChain")),
    (ChainFacts(chain_id=31337, wallet_empty=True, problem="x"), ("False", "InsufficientFunds")),
]


@pytest.mark.parametrize(("facts", "expected"), REGISTERED)
def test_the_reason_that_peers_are_not_registered_is_named(facts: ChainFacts | None, expected: tuple[str, str]) -> None:
    assert chain(facts, begun=False)["Registered"] == expected


LAGGING: list[tuple[ChainFacts | None, int, str]] = [
    (ChainFacts(registered=3, round=10), 10, "AsExpected"),
    (ChainFacts(registered=3, round=10), 15, "AsExpected"),
    (ChainFacts(registered=3, round=10), 16, "ChainLagging"),
    (ChainFacts(registered=3, round=-1), 50, "AsExpected"),
    (None, 10, "ChainLagging"),
]


@pytest.mark.parametrize(("facts", "round", "expected"), LAGGING)
def test_a_lagging_chain_degrades_the_game_and_does_not_stop_it(
    facts: ChainFacts | None, round: int, expected: str
) -> None:
    found = chain(facts, begun=True, round=round)
    assert found["Degraded"][1] == expected
    assert found["Ready"] == ("True", "PeersReady")


def test_a_chain_that_has_not_answered_yet_does_not_degrade_a_game_that_has_not_begun() -> None:
    assert chain(None, begun=False)["Degraded"] == ("False", "AsExpected")


def test_the_status_names_the_chain_and_keeps_its_last_values() -> None:
    resource, observed = running(valid_game({"coordination": {"mode": "Dev"}}))
    found = build_plan(resource, replace(observed, chain=ChainFacts(registered=4, round=7, last_block=123)), DEFAULTS)
    coordination = found.status.coordination
    assert coordination is not None
    assert (
        coordination.chain_id,
        coordination.contract_address,
        coordination.round,
        coordination.last_observed_block,
    ) == (
        31337,
        "0x5FbDB2315678afecb367f032d93F642f64180aa3",
        7,
        123,
    )
    again = build_plan(replace(resource, status=found.status), observed, DEFAULTS)
    assert again.status.coordination == coordination
