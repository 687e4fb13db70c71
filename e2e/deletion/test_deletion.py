"""Deletion removes all of a game but what its retention policies keep; games do not affect each other."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from clusters import Cluster, Namespace, new_namespace, remove_namespace
from games import PLURAL, Game, play
from polling import until

pytestmark = pytest.mark.timeout(500)
KEPT = {"Secret/kept-peer-keys", "Secret/kept-bootnode-key", "PersistentVolumeClaim/kept-checkpoints"}
EVERYTHING = "jobs,deployments,statefulsets,services,configmaps,secrets,persistentvolumeclaims,networkpolicies,pods"


def test_two_games_in_one_namespace_and_one_in_another_are_three_swarms(
    cluster: Cluster, game: Callable[..., Game], namespace: Namespace
) -> None:
    keep = {"storage": {"checkpoints": {"retentionPolicy": {"whenDeleted": "Retain", "whenFinished": "Retain"}}}}
    drop = {
        "storage": {"checkpoints": {"retentionPolicy": {"whenDeleted": "Delete", "whenFinished": "Delete"}}},
        "identity": {"retentionPolicy": "Delete"},
    }
    elsewhere = new_namespace(cluster)
    try:
        one, two = game("kept", **keep, peers={"replicas": 1}), game("dropped", **drop, peers={"replicas": 1})
        far = play(elsewhere, Path(__file__).parent / "game.yaml", "kept", **drop, peers={"replicas": 1})
        games = (one, two, far)
        for each in games:
            each.wait_for_round(1, seconds=240)
        members = [each.of_peer(0)["members"] for each in games]
        assert [len(each) for each in members] == [1, 1, 1], "swarms have met"
        assert len({each[0] for each in members}) == 3

        namespace.kubectl("delete", PLURAL, one.name, two.name, "--timeout=90s")
        until(
            lambda: _objects(namespace) == KEPT,
            90,
            seen=lambda: _objects(namespace),
        )
        reached = far.round
        far.wait_for_round(reached + 1)

        named = {"checkpoints": {"claimTemplate": None, "claimName": "kept-checkpoints"}}
        again = game("kept", storage=named, peers={"replicas": 1})  # it uses what was kept, as it names it
        until(lambda: again.identities().get(0) == members[0][0], 150, every=0.5, seen=namespace.describe)
        until(lambda: again.status_of_peer(0).get("checkpoint") is not None, 60, every=0.5, seen=namespace.describe)
    finally:
        remove_namespace(elsewhere)


def _objects(namespace: Namespace) -> set[str]:
    listed = namespace.get(EVERYTHING, "-l", "app.kubernetes.io/part-of=swarmgame")["items"]
    return {f"{each['kind']}/{each['metadata']['name']}" for each in listed}
