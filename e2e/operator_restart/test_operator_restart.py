"""A killed operator changes no correct object when it returns, and repairs objects that were changed by hand."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from clusters import Namespace
from games import SYSTEM, Game, Installation
from polling import until

pytestmark = pytest.mark.timeout(900)
CHILDREN = "jobs,deployments,services,configmaps,networkpolicies"


def test_nothing_changes_when_the_operator_is_killed_and_comes_back(
    game: Callable[..., Game], operator: Installation, namespace: Namespace
) -> None:
    playing = game()
    operator.cluster.kubectl(
        "delete",
        "pod",
        "--namespace",
        SYSTEM,
        "-l",
        "app.kubernetes.io/component=operator",
        "--grace-period=0",
        "--force",
    )
    playing.wait("Ready", seconds=240)  # the operator was killed while it created the game's objects
    playing.wait_for_round(2)
    made = _generations(playing)
    pods = {pod["metadata"]["uid"] for pod in playing.pods()}
    killed = {pod["metadata"]["uid"] for pod in operator.operator_pods()}

    operator.cluster.kubectl(
        "delete",
        "pod",
        "--namespace",
        SYSTEM,
        "-l",
        "app.kubernetes.io/component=operator",
        "--grace-period=0",
        "--force",
    )
    until(lambda: _ready(operator, killed), 180, seen=operator.operator_pods)
    played = playing.round
    playing.wait_for_round(played + 2)
    assert _generations(playing) == made
    assert {pod["metadata"]["uid"] for pod in playing.pods()} == pods


def test_objects_that_are_changed_or_deleted_by_hand_are_repaired(
    game: Callable[..., Game], namespace: Namespace
) -> None:
    playing = game()
    until(lambda: len(playing.pods()) >= 2, 120, seen=namespace.describe)
    service = namespace.get("service", f"{playing.name}-peers")
    broken = json.dumps({"spec": {"selector": {"swarmgame.dev/game": "another"}}})
    namespace.kubectl("patch", "service", f"{playing.name}-peers", "--type=merge", "-p", broken)
    until(
        lambda: namespace.get("service", f"{playing.name}-peers")["spec"]["selector"] == service["spec"]["selector"],
        120,
    )
    namespace.kubectl("delete", "configmap", f"{playing.name}-game")
    until(
        lambda: namespace.kubectl("get", "configmap", f"{playing.name}-game", "--ignore-not-found", "-o", "name"), 120
    )
    namespace.kubectl("scale", "deployment", f"{playing.name}-bootnode", "--replicas=0")
    until(lambda: namespace.get("deployment", f"{playing.name}-bootnode")["spec"]["replicas"] == 1, 120)


def _generations(playing: Game) -> dict[str, Any]:
    """Return every child with its uid and generation."""
    listed = playing.namespace.get(CHILDREN, "-l", f"swarmgame.dev/game={playing.name}")["items"]
    return {
        f"{each['kind']}/{each['metadata']['name']}": (each["metadata"]["uid"], each["metadata"].get("generation"))
        for each in listed
    }


def _ready(operator: Installation, killed: set[str]) -> bool:
    pods = [pod for pod in operator.operator_pods() if pod["metadata"]["uid"] not in killed]
    return any(each["ready"] for pod in pods for each in pod["status"].get("containerStatuses", ()))
