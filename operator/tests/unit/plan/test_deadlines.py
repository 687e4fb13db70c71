"""Deadlines: which time counts, and when the game is requeued."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from plan_fixtures import (
    DEFAULTS,
    condition,
    job_with,
    later,
    ready_pod,
    reported,
    running,
    settled,
    valid_game,
    with_status,
)

from swarmgame_api.resource import GameResource
from swarmgame_operator.plan import Deletion, Plan, build_plan
from swarmgame_operator.snapshot import Observed

QUEUE = {"kueue.x-k8s.io/queue-name": "research"}


def at(resource: GameResource, observed: Observed, seconds: float) -> Plan:
    return build_plan(resource, later(observed, seconds), DEFAULTS)


def failed(found: Plan) -> str:
    end = condition(found, "Failed")
    return end.reason if end is not None else ""


@pytest.mark.parametrize(("seconds", "expected"), [(59, ""), (60, ""), (61, "DeadlineExceeded")])
def test_a_game_fails_when_it_exceeds_its_deadline(seconds: float, expected: str) -> None:
    assert failed(at(*running(valid_game({"activeDeadlineSeconds": 60})), seconds)) == expected


@pytest.mark.parametrize(("seconds", "expected"), [(30, ""), (31, "PreRunningDeadlineExceeded")])
def test_a_game_fails_when_its_first_round_does_not_begin_in_time(seconds: float, expected: str) -> None:
    assert failed(at(*settled(valid_game({"preRunningDeadlineSeconds": 30})), seconds)) == expected


def test_a_game_that_has_begun_has_no_pre_running_deadline() -> None:
    resource, observed = running(valid_game({"preRunningDeadlineSeconds": 30}))
    without_pods = replace(observed, pods=())
    assert failed(at(resource, without_pods, 10_000)) == ""


def test_time_in_a_queue_does_not_count() -> None:
    resource, observed = settled(
        valid_game({"preRunningDeadlineSeconds": 30, "activeDeadlineSeconds": 60}, labels=QUEUE)
    )
    waited = at(resource, observed, 100_000)
    assert failed(waited) == ""
    assert observed.job is not None
    admitted = replace(later(observed, 100_000), job=replace(observed.job, suspended=False))
    resource = with_status(resource, build_plan(with_status(resource, waited.status), admitted, DEFAULTS).status)
    assert failed(at(resource, admitted, 29)) == ""
    assert failed(at(resource, admitted, 31)) == "PreRunningDeadlineExceeded"


def test_time_without_a_required_secret_does_not_count() -> None:
    resource = valid_game({"preRunningDeadlineSeconds": 30, "model": {"uri": "hf://a/b", "secretRef": {"name": "hub"}}})
    resource, observed = settled(resource)
    assert failed(at(resource, observed, 10_000)) == ""


def test_a_game_that_was_suspended_gets_its_full_time_again() -> None:
    resource, observed = running(valid_game({"activeDeadlineSeconds": 60}))
    stopped = build_plan(
        valid_game({"activeDeadlineSeconds": 60, "suspend": True}, status=resource.status),
        later(observed, 50),
        DEFAULTS,
    )
    resumed = build_plan(
        valid_game({"activeDeadlineSeconds": 60}, status=stopped.status), later(observed, 1_000), DEFAULTS
    )
    resource = with_status(resource, resumed.status)
    assert failed(at(resource, observed, 1_050)) == ""
    assert failed(at(resource, observed, 1_061)) == "DeadlineExceeded"


def test_a_deadline_survives_a_restart_of_the_operator() -> None:
    """Only the status is kept, and a plan from it a day later is the same."""
    resource, observed = running(valid_game({"activeDeadlineSeconds": 60}))
    assert failed(at(resource, observed, 86_400)) == "DeadlineExceeded"


def test_a_failed_game_stops_its_peers_and_its_bootnode_and_keeps_its_end() -> None:
    resource, observed = running(valid_game({"activeDeadlineSeconds": 60}))
    found = at(resource, observed, 61)
    assert Deletion("Job", "sums-peers", "Foreground") in found.deletions
    assert [child.apply_manifest["spec"]["replicas"] for child in found.children if child.kind == "Deployment"] == [0]
    assert found.status.completion_time == "2026-01-31T12:01:01Z"
    again = at(with_status(resource, found.status), replace(observed, job=None, pods=()), 500)
    assert again.status.completion_time == found.status.completion_time
    assert reported(again)["Progressing"] == ("False", "Finished")


def test_a_finished_job_is_kept_for_its_logs() -> None:
    resource, observed = running(valid_game())
    assert not build_plan(resource, job_with(observed, ("Complete", "")), DEFAULTS).deletions


@pytest.mark.parametrize(
    ("ttl", "seconds", "expected"), [(None, 10**9, False), (60, 59, False), (60, 60, True), (0, 0, True)]
)
def test_a_game_that_is_over_is_deleted_after_its_time_to_live(ttl: int | None, seconds: float, expected: bool) -> None:
    resource, observed = running(valid_game({"ttlSecondsAfterFinished": ttl}))
    ended = build_plan(resource, job_with(observed, ("Complete", "")), DEFAULTS)
    found = at(with_status(resource, ended.status), job_with(observed, ("Complete", "")), seconds)
    assert found.delete_game is expected


def test_a_game_that_runs_is_never_deleted() -> None:
    resource, observed = running(valid_game({"ttlSecondsAfterFinished": 0}))
    assert not at(resource, observed, 10**6).delete_game


SOON: list[tuple[dict[str, Any], float, float]] = [
    ({"preRunningDeadlineSeconds": 30}, 10, 21),
    ({"preRunningDeadlineSeconds": 30, "activeDeadlineSeconds": 15}, 10, 6),
    ({"preRunningDeadlineSeconds": 300, "activeDeadlineSeconds": 600}, 0, 301),
]


@pytest.mark.parametrize(("spec", "after", "expected"), SOON, ids=str)
def test_a_game_is_requeued_just_after_its_next_deadline(spec: dict[str, Any], after: float, expected: float) -> None:
    found = at(*settled(valid_game(spec)), after)
    assert found.requeue_after == pytest.approx(expected)


def test_a_game_that_is_over_is_requeued_for_its_deletion_only() -> None:
    resource, observed = running(valid_game({"ttlSecondsAfterFinished": 60}))
    ended = build_plan(resource, job_with(observed, ("Complete", "")), DEFAULTS)
    assert ended.requeue_after == pytest.approx(60)
    forever, observed = running(valid_game())
    assert build_plan(forever, job_with(observed, ("Complete", "")), DEFAULTS).requeue_after is None


def test_at_the_requeue_time_the_deadline_has_passed() -> None:
    resource, observed = settled(valid_game({"preRunningDeadlineSeconds": 30}))
    wait = build_plan(resource, observed, DEFAULTS).requeue_after
    assert wait is not None
    assert failed(at(resource, observed, wait)) == "PreRunningDeadlineExceeded"


def test_a_clock_that_goes_back_fails_nothing() -> None:
    resource, observed = running(valid_game({"activeDeadlineSeconds": 60}))
    assert failed(at(resource, replace(observed, pods=(ready_pod(0),)), -5_000)) == ""
