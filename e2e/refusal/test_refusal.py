"""Errors of a game are reported by the API server at once, or soon in a condition."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from clusters import Namespace
from games import Game, Installation, manifest

pytestmark = pytest.mark.timeout(500)
SOON = 120.0


def test_an_invalid_manifest_is_refused_by_the_api_server_with_a_sentence(
    operator: Installation, namespace: Namespace
) -> None:
    body = manifest(Path(__file__).parent / "game.yaml", peers={"replicas": 9, "maxReplicas": 4})
    done = namespace.cluster.try_kubectl("--namespace", namespace.name, "apply", "-f", "-", stdin=json.dumps(body))
    assert done.returncode != 0
    assert "minReplicas" in done.stderr
    assert "maxReplicas" in done.stderr
    body = manifest(Path(__file__).parent / "game.yaml", peers={"replica": 2})
    done = namespace.cluster.try_kubectl("--namespace", namespace.name, "apply", "-f", "-", stdin=json.dumps(body))
    assert done.returncode != 0
    assert 'unknown field "spec.peers.replica"' in done.stderr


def test_a_missing_secret_is_named_and_the_game_starts_when_it_exists(
    game: Callable[..., Game], namespace: Namespace
) -> None:
    playing = game(model={"uri": "builtin://tiny", "secretRef": {"name": "hub-token"}})
    found = playing.wait("Accepted", "False", "SecretNotFound", SOON)
    assert "hub-token" in found["message"]
    assert not playing.pods()
    namespace.kubectl("create", "secret", "generic", "hub-token", "--from-literal=token=not-a-real-one")
    playing.wait("Accepted", "True", "Valid", SOON)


def test_a_missing_module_is_named(game: Callable[..., Game]) -> None:
    module = {"name": "mine", "configMapRef": {"name": "my-game"}, "mountPath": "/modules/mine"}
    playing = game(game={"modules": [module]})
    found = playing.wait("Accepted", "False", "ModuleNotFound", SOON)
    assert "my-game" in found["message"]


def test_an_invalid_pod_template_is_refused_with_the_message_of_the_api_server(game: Callable[..., Game]) -> None:
    playing = game(peers={"podTemplate": {"spec": {"restartPolicy": "Sometimes"}}})
    found = playing.wait("Accepted", "False", "InvalidPodTemplate", SOON)
    assert "Sometimes" in found["message"]


def test_an_image_that_cannot_be_pulled_makes_the_game_degraded(game: Callable[..., Game]) -> None:
    playing = game(peers={"image": "localhost/missing-image:1"})
    found = playing.wait("Degraded", "True", "ImagePullFailed", SOON)
    assert "missing-image" in found["message"]


def test_peers_that_fit_on_no_node_are_unschedulable(game: Callable[..., Game]) -> None:
    playing = game(peers={"resources": {"limits": {"nvidia.com/gpu": "1", "memory": "3Gi"}}})
    found = playing.wait("Ready", "False", "Unschedulable", SOON)
    assert "nvidia.com/gpu" in found["message"]


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"data": {"use": "images", "with": {"source": "sklearn://letters"}}}, "letters"),
        ({"trainer": {"use": "policy-gradient", "with": {"actions": 0}}}, "actions"),
        ({"rewards": {"use": "no_such_module:Rewards"}}, "no_such_module"),
    ],
)
def test_a_game_that_the_worker_refuses_fails_with_its_message(
    game: Callable[..., Game], changes: dict[str, Any], part: str
) -> None:
    playing = game(game=changes)
    found = playing.wait("Accepted", "False", "InvalidGame", 240)
    assert part in found["message"]
    playing.wait("Failed", reason="FatalExitCode", seconds=120)
