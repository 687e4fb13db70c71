"""Objects of a cluster: reading never fails, and a status is unchanged by writing and reading."""

from __future__ import annotations

import copy
from datetime import UTC, datetime
from typing import Any

import pytest

from swarmgame_api.reference import MINIMAL
from swarmgame_api.resource import MANAGER, GameResource, read_status, status_document
from swarmgame_api.status import SwarmGameStatus
from swarmgame_api.yaml_io import load_documents

CONDITION = {
    "type": "Complete",
    "status": "True",
    "reason": "RoundsReached",
    "lastTransitionTime": "2026-01-31T12:00:00Z",
}
STATUS: dict[str, Any] = {
    "observedGeneration": 2,
    "peers": {"desired": 4, "ready": 3},
    "unhealthyPeers": [{"index": 3, "reason": "OutOfMemory"}],
    "progress": {"round": 7, "metrics": [{"name": "reward", "value": "0.41"}]},
    "conditions": [CONDITION, {**CONDITION, "type": "Ready", "reason": "PeersReady"}],
}


def body(**changes: Any) -> dict[str, Any]:
    (document,) = load_documents(MINIMAL)
    assert isinstance(document, dict)
    metadata = {
        "name": "sums",
        "namespace": "research",
        "uid": "6f2a",
        "generation": 3,
        "creationTimestamp": "2026-01-31T12:00:00Z",
        "resourceVersion": "17",
        "labels": {"kueue.x-k8s.io/queue-name": "research"},
        "managedFields": [{"manager": "kubectl"}],
    }
    result: dict[str, Any] = {**copy.deepcopy(document), "metadata": metadata, "status": copy.deepcopy(STATUS)}
    for path, value in changes.items():
        place = result
        *parents, last = path.split("__")
        for key in parents:
            place = place[key]
        place[last] = value
    return result


def test_an_object_of_a_cluster_is_read_with_every_default_filled_in() -> None:
    read = GameResource.parse(body())
    assert (read.key, read.uid, read.generation) == (("research", "sums"), "6f2a", 3)
    assert read.created == datetime(2026, 1, 31, 12, tzinfo=UTC)
    assert read.deleted is None
    assert read.labels == {"kueue.x-k8s.io/queue-name": "research"}
    assert read.annotations == {}
    assert read.finalizers == ()
    assert read.managed_by == MANAGER == "swarmgame.dev/operator"
    assert read.game is not None
    assert read.game.spec.peers.replicas == 4
    assert read.game.metadata.namespace == "research"
    assert read.problems == ()
    assert read.status.progress.round == 7


def test_an_object_that_is_being_deleted_has_the_time_of_the_request() -> None:
    read = GameResource.parse(
        body(metadata__deletionTimestamp="2026-02-01T00:00:00Z", metadata__finalizers=["swarmgame.dev/chain"])
    )
    assert read.deleted == datetime(2026, 2, 1, tzinfo=UTC)
    assert read.finalizers == ("swarmgame.dev/chain",)


def test_an_unusable_spec_has_problems_and_its_controller_but_no_game() -> None:
    read = GameResource.parse(body(spec__game__maxRounds=0, spec__managedBy="example.dev/other"))
    assert read.game is None
    assert [str(problem) for problem in read.problems] == [
        "spec.game.maxRounds is 0; expected an integer from 1 to 1,000,000,000"
    ]
    assert read.managed_by == "example.dev/other"
    assert read.status.progress.round == 7


@pytest.mark.parametrize("spec", [None, [], "text", {}, {"game": None}, {"managedBy": 3}])
def test_any_spec_at_all_is_read(spec: object) -> None:
    read = GameResource.parse(body(spec=spec))
    assert read.game is None
    assert read.problems
    assert read.managed_by == MANAGER


def test_labels_and_annotations_may_exceed_a_manifests_bounds() -> None:
    annotations = {"kubectl.kubernetes.io/last-applied-configuration": "x" * 200_000}
    read = GameResource.parse(
        body(metadata__annotations=annotations, metadata__labels={f"label-{n}": "" for n in range(100)})
    )
    assert read.game is not None
    assert len(read.labels) == 100
    assert read.annotations == annotations


@pytest.mark.parametrize("key", ["name", "namespace", "uid", "creationTimestamp"])
def test_an_object_that_is_not_from_a_cluster_is_refused(key: str) -> None:
    made = body()
    del made["metadata"][key]
    with pytest.raises(ValueError, match=rf"metadata\.{key}"):
        GameResource.parse(made)


def test_reading_changes_nothing_of_the_body() -> None:
    made = body(status__newer="field")
    before = copy.deepcopy(made)
    GameResource.parse(made)
    assert made == before


def test_a_status_is_unchanged_by_writing_and_reading() -> None:
    status = read_status(STATUS)
    assert read_status(status_document(status)) == status
    document = status_document(status)
    assert document["unhealthyPeers"] == [{"index": 3, "reason": "OutOfMemory", "message": ""}]
    assert "checkpoint" not in document
    assert "startTime" not in document


def test_unreadable_entries_of_a_status_are_dropped_and_a_finished_game_stays_finished() -> None:
    broken = {
        **STATUS,
        "newer": {"field": 1},
        "peers": {"desired": "four", "ready": 3, "resting": 1},
        "unhealthyPeers": [{"index": -1, "reason": "A"}, {"index": 1}, {"index": 2, "reason": "B"}, "text"],
        "conditions": [{**CONDITION, "type": "Newer"}, {"type": "Ready"}, CONDITION],
        "checkpoint": {"round": 3},
    }
    status = read_status(broken)
    assert [condition.type for condition in status.conditions] == ["Complete"]
    assert (status.peers.desired, status.peers.ready) == (0, 3)
    assert [peer.index for peer in status.unhealthy_peers] == [2]
    assert status.checkpoint is None
    assert status.progress.round == 7


def test_a_list_that_is_too_long_keeps_its_first_entries() -> None:
    many = [{"index": index, "reason": "A"} for index in range(40)]
    assert [peer.index for peer in read_status({"unhealthyPeers": many}).unhealthy_peers] == list(range(16))


@pytest.mark.parametrize("status", [None, [], "text", {}, {"conditions": 3}, {"peers": None}])
def test_an_unreadable_status_is_empty(status: object) -> None:
    assert read_status(status) == SwarmGameStatus()
