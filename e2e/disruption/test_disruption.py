"""Evicted, deleted and killed peers return with their identity and progress; only their own failures are counted."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from clusters import Namespace
from games import Game
from polling import until

pytestmark = pytest.mark.timeout(600)


def test_the_swarm_continues_while_peers_and_the_bootnode_are_lost_one_after_another(
    game: Callable[..., Game], namespace: Namespace
) -> None:
    playing = game()
    playing.wait("Ready", seconds=180)
    playing.wait_for_round(3)
    known = until(lambda: found if len(found := playing.identities()) == 2 else {}, 60)

    # Evicted: a disruption, not counted as a failure.
    lost = playing.peers()[1]["metadata"]["name"]
    reached = playing.of_peer(1)["rounds_finished"]
    _evict(namespace, lost)
    back = _returned(playing, namespace, 1, lost)
    assert back["peer"] == known[1]
    assert back["rounds_finished"] >= reached - 1
    assert _failures(namespace, playing) == {}

    # Deleted by hand: the same.
    lost = playing.peers()[1]["metadata"]["name"]
    namespace.kubectl("delete", "pod", lost, "--wait=false")
    assert _returned(playing, namespace, 1, lost)["peer"] == known[1]
    assert playing.condition("Failed").get("status") != "True"

    # Killed inside the pod: counted as the peer's failure, and restarted.
    lost, reached = playing.peers()[0]["metadata"]["name"], playing.of_peer(0)["rounds_finished"]
    kill = (
        "import os, signal; [os.kill(int(p), signal.SIGKILL) for p in os.listdir('/proc') "
        "if p.isdigit() and int(p) not in (1, os.getpid())]"
    )
    namespace.kubectl("exec", lost, "-c", "peer", "--", "python3", "-c", kill, check=False)
    back = _returned(playing, namespace, 0, lost)
    assert back["peer"] == known[0]
    assert back["rounds_finished"] >= reached - 1
    assert _failures(namespace, playing)[0] == 1

    # The bootnode: peers continue without it, and it returns with the same address.
    address = playing.status["bootnode"]["address"]
    namespace.kubectl(
        "delete", "pod", "-l", f"swarmgame.dev/game={playing.name},swarmgame.dev/role=bootnode", "--wait=false"
    )
    played = playing.round
    playing.wait_for_round(played + 2)
    until(lambda: playing.status["bootnode"] == {"ready": True, "address": address}, 90, seen=namespace.describe)
    until(lambda: playing.status["peers"]["ready"] == 2, 120, seen=namespace.describe)


def _returned(playing: Game, namespace: Namespace, index: int, lost: str) -> dict[str, Any]:
    """Return the status of the pod that replaced a lost one, once it is running."""

    def running() -> dict[str, Any]:
        pod = playing.peers().get(index)
        if pod is None or pod["metadata"]["name"] == lost:
            return {}
        try:
            status = dict(playing.of_peer(index))
        except (AssertionError, KeyError):
            return {}
        return status if status["phase"] == "running" else {}

    return until(running, 180, every=0.5, seen=namespace.describe)


def _failures(namespace: Namespace, playing: Game) -> dict[int, int]:
    """Return the failures that the Job counts, by index."""
    found = {}
    for index, pod in playing.peers().items():
        count = int(pod["metadata"]["annotations"].get("batch.kubernetes.io/job-index-failure-count", "0"))
        if count:
            found[index] = count
    return found


def _evict(namespace: Namespace, pod: str) -> None:
    from kubernetes import client

    with namespace.cluster.client() as connection:
        body = client.V1Eviction(metadata=client.V1ObjectMeta(name=pod, namespace=namespace.name))
        client.CoreV1Api(connection).create_namespaced_pod_eviction(pod, namespace.name, body)
