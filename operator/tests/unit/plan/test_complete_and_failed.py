"""Complete and Failed: what ends a game, and what is reported then."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from plan_fixtures import (
    DEFAULTS,
    EMPTY,
    condition,
    failed_pod,
    job_with,
    later,
    ready_pod,
    reported,
    running,
    settled,
    valid_game,
    with_status,
)

from swarmgame_operator.plan import Deletion, Plan, build_plan
from swarmgame_operator.snapshot import ChainFacts, ChildFacts, ContainerFacts, JobCondition, Observed, PodFacts

ALL = {"completion": {"policy": "AllPeers"}}
COORDINATOR: dict[str, Any] = {"completion": {"policy": "Coordinator"}, "coordination": {"mode": "Dev"}}


def end(found: Plan) -> tuple[str, str]:
    ends = [each for each in found.status.conditions if each.type in ("Complete", "Failed")]
    return (ends[0].type, ends[0].reason) if ends else ("", "")


def ended(spec: dict[str, Any], *conditions: tuple[str, str], chain: ChainFacts | None = None, **job: Any) -> Plan:
    resource, observed = running(valid_game(spec))
    return build_plan(resource, replace(job_with(observed, *conditions, **job), chain=chain), DEFAULTS)


TABLE: list[tuple[dict[str, Any], list[tuple[str, str]], dict[str, Any], tuple[str, str]]] = [
    ({}, [], {}, ("", "")),
    ({}, [("SuccessCriteriaMet", "SuccessPolicy")], {"completed_indexes": "2"}, ("Complete", "RoundsReached")),
    ({}, [("Suspended", "")], {}, ("", "")),
    ({}, [("Failed", "FailedIndexes")], {"failed_indexes": "0-3"}, ("Failed", "TooManyFailedPeers")),
    ({}, [("Failed", "BackoffLimitExceeded")], {}, ("Failed", "TooManyFailedPeers")),
    (
        ALL,
        [("Failed", "FailedIndexes")],
        {"completed_indexes": "0-1", "failed_indexes": "2,3"},
        ("Complete", "AllPeersSucceeded"),
    ),
    (
        ALL,
        [("Failed", "FailedIndexes")],
        {"completed_indexes": "0", "failed_indexes": "1-3"},
        ("Failed", "TooManyFailedPeers"),
    ),
    (
        {**ALL, "failurePolicy": {"maxFailedPeers": 9}},
        [("Failed", "FailedIndexes")],
        {"failed_indexes": "0-3"},
        ("Failed", "TooManyFailedPeers"),
    ),
    (ALL, [], {"completed_indexes": "0-1"}, ("", "")),
    (COORDINATOR, [], {}, ("", "")),
    (COORDINATOR, [("Complete", "")], {"completed_indexes": "0-3"}, ("Complete", "AllPeersSucceeded")),
]


@pytest.mark.parametrize(("spec", "conditions", "job", "expected"), TABLE)
def test_the_end_of_the_job_ends_the_game(
    spec: dict[str, Any], conditions: list[tuple[str, str]], job: dict[str, Any], expected: tuple[str, str]
) -> None:
    assert end(ended(spec, *conditions, **job)) == expected


@pytest.mark.parametrize(
    ("round", "expected"), [(-1, ("", "")), (99, ("", "")), (100, ("Complete", "CoordinatorFinished"))]
)
def test_the_chain_ends_a_game_only_where_the_game_leaves_it_to_the_chain(
    round: int, expected: tuple[str, str]
) -> None:
    chain = ChainFacts(registered=4, round=round)
    assert end(ended(COORDINATOR, chain=chain)) == expected
    assert end(ended({"coordination": {"mode": "Dev"}}, chain=chain)) == ("", "")


def test_a_game_that_the_chain_ended_deletes_its_job() -> None:
    found = ended(COORDINATOR, chain=ChainFacts(registered=4, round=100))
    assert [(each.kind, each.propagation) for each in found.deletions] == [("Job", "Foreground")]


def test_the_chain_and_its_gateway_stay_after_the_end() -> None:
    resource, observed = running(valid_game(COORDINATOR))
    found = build_plan(resource, replace(observed, chain=ChainFacts(registered=4, round=100)), DEFAULTS)
    touched = {child.name for child in found.children} | {each.name for each in found.deletions}
    assert not {"sums-gateway", "sums-chain"} & touched


def test_a_complete_game_is_at_its_last_round_with_nothing_left() -> None:
    progress = ended({}, ("Complete", "")).status.progress
    assert (progress.round, progress.percentage, progress.estimated_remaining_seconds) == (100, 100, 0)


def test_the_termination_message_of_a_fatal_container_is_quoted_in_both_conditions() -> None:
    resource, observed = running(valid_game())
    message = "game.yaml: spec.game.trainer.with.generations is 1; expected at least 2"
    observed = replace(
        job_with(observed, ("FailureTarget", "PodFailurePolicy")), pods=(ready_pod(1), failed_pod(0, 78, message))
    )
    found = build_plan(resource, observed, DEFAULTS)
    assert reported(found)["Accepted"] == ("False", "InvalidGame")
    for type in ("Accepted", "Failed"):
        each = condition(found, type)
        assert each is not None
        assert message in each.message


def test_a_model_that_cannot_be_used_has_another_reason_than_a_game_that_cannot() -> None:
    resource, observed = running(valid_game())
    pod = failed_pod(
        0, 78, 'game.yaml: spec.model.uri is "hf://a/b"; expected a model that the hub has', container="initializer"
    )
    found = build_plan(resource, replace(job_with(observed, ("Failed", "PodFailurePolicy")), pods=(pod,)), DEFAULTS)
    assert reported(found)["Accepted"] == ("False", "ModelNotFound")
    assert end(found) == ("Failed", "FatalExitCode")


def test_a_fatal_initializer_ends_the_game_before_a_peer_is_created() -> None:
    claim = {"claimTemplate": {"spec": {"resources": {"requests": {"storage": "1Gi"}}}}}
    resource, observed = settled(valid_game({"storage": {"cache": claim}}))
    assert observed.initializer is not None
    ended = ContainerFacts(
        "initializer", exit_code=78, exit_reason="Error", termination_message="game.yaml: spec.game.data.use is nothing"
    )
    pod = PodFacts("sums-initializer-x", "initializer", phase="Failed", containers=(ended,))
    job = replace(observed.initializer, conditions=(JobCondition("Failed", "PodFailurePolicy"),))
    found = build_plan(resource, replace(observed, initializer=job, pods=(pod,)), DEFAULTS)
    assert end(found) == ("Failed", "FatalExitCode")
    assert reported(found)["Accepted"] == ("False", "InvalidGame")


def test_a_gated_model_is_not_fatal_and_can_be_fixed_while_the_game_waits() -> None:
    claim = {"claimTemplate": {"spec": {"resources": {"requests": {"storage": "1Gi"}}}}}
    resource, observed = settled(valid_game({"storage": {"cache": claim}}))
    assert observed.initializer is not None
    refused = ContainerFacts(
        "initializer", exit_code=77, exit_reason="Error", termination_message="the hub refused the token"
    )
    pod = PodFacts("sums-initializer-x", "initializer", phase="Failed", containers=(refused,))
    job = replace(observed.initializer, conditions=(JobCondition("Failed", "PodFailurePolicy"),))
    found = build_plan(resource, replace(observed, initializer=job, pods=(pod,)), DEFAULTS)
    assert end(found) == ("", "")
    accepted = condition(found, "Accepted")
    assert accepted is not None
    assert (accepted.reason, "the hub refused the token" in accepted.message) == ("ModelNotFound", True)


FIRST = [("Complete", "RoundsReached"), ("Failed", "TooManyFailedPeers")]


@pytest.mark.parametrize("first", FIRST)
def test_an_end_stays_whatever_happens_to_the_job(first: tuple[str, str]) -> None:
    resource, observed = running(valid_game())
    job = ("Complete", "") if first[0] == "Complete" else ("Failed", "MaxFailedIndexesExceeded")
    found = build_plan(resource, job_with(observed, job), DEFAULTS)
    assert end(found) == first
    later: list[Observed] = [
        replace(observed, job=None, pods=()),
        observed,
        job_with(observed, ("Failed", "PodFailurePolicy")),
        job_with(observed, ("Complete", "")),
    ]
    for seen in later:
        again = build_plan(with_status(resource, found.status), seen, DEFAULTS)
        assert end(again) == first
        assert condition(again, first[0]) == condition(found, first[0])
        assert not [child for child in again.children if child.kind == "Job"]


def test_a_finished_game_deletes_its_checkpoints_if_its_policy_is_delete() -> None:
    claim = {"claimTemplate": {"spec": {"resources": {"requests": {"storage": "1Gi"}}}}}
    for policy, expected in (("Delete", [("PersistentVolumeClaim", "sums-checkpoints")]), ("Retain", [])):
        storage = {"checkpoints": {**claim, "retentionPolicy": {"whenFinished": policy}}}
        resource, observed = running(valid_game({"storage": storage}))
        found = build_plan(resource, job_with(observed, ("Complete", "")), DEFAULTS)
        assert [(each.kind, each.name) for each in found.deletions] == expected


@pytest.mark.parametrize(
    ("facts", "deleted"),
    [
        (ChildFacts(made_for="5f0c7b9e-0000-4000-8000-000000000001"), True),
        (ChildFacts(), True),  # of an operator that did not mark its claims yet
        (ChildFacts(made_for="an earlier game"), False),
        (ChildFacts(controller="StatefulSet other"), False),
    ],
)
def test_a_failed_game_never_deletes_the_kept_checkpoints_of_another(facts: ChildFacts, deleted: bool) -> None:
    claim = {"claimTemplate": {"spec": {"resources": {"requests": {"storage": "1Gi"}}}}}
    storage = {"checkpoints": {**claim, "retentionPolicy": {"whenFinished": "Delete"}}}
    place = ("PersistentVolumeClaim", "sums-checkpoints")
    resource, observed = settled(valid_game({"storage": storage}), replace(EMPTY, children={place: facts}))
    late = replace(later(observed, 100_000), children={**observed.children, place: facts})
    found = build_plan(resource, late, DEFAULTS)
    assert end(found) == ("Failed", "PreRunningDeadlineExceeded")
    assert (Deletion(*place) in found.deletions) is deleted
