"""Every reason of the reference, with a game whose plan reports it, and a part of its message."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from plan_fixtures import (
    EMPTY,
    condition,
    failed_pod,
    game,
    ready_pod,
    running,
    settled,
    valid_game,
    with_status,
)
from reason_cases import CASES, planned, with_pods

from swarmgame_api.resource import GameResource
from swarmgame_api.status import REASONS
from swarmgame_operator.plan import Plan
from swarmgame_operator.plan.peer_job import peer_job
from swarmgame_operator.plan.rollout import dry_run_of
from swarmgame_operator.snapshot import (
    DryRunFacts,
    JobFacts,
)


@pytest.mark.parametrize(("type", "reason"), CASES)
def test_a_reason_is_reported_for_a_game_to_which_it_applies(type: str, reason: str) -> None:
    make_plan, status, text = CASES[type, reason]
    found = condition(make_plan(), type)
    assert found is not None
    assert (found.reason, found.status) == (reason, status), found.message
    assert text in found.message


def test_every_reason_of_the_reference_has_a_case() -> None:
    assert set(CASES) == {(type, reason) for type, reasons in REASONS.items() for reason in reasons}


def test_a_message_is_one_line_and_ends_as_a_sentence_does() -> None:
    for make_plan, _, _ in CASES.values():
        for each in make_plan().status.conditions:
            assert "\n" not in each.message
            assert each.message


def test_the_answer_to_another_dry_run_is_ignored() -> None:
    resource = valid_game({"peers": {"podTemplate": {"spec": {"hostNetwork": "perhaps"}}}})
    resource, observed = settled(resource)
    found = planned(resource, replace(observed, dry_run=DryRunFacts("of something else", "no")))
    accepted = condition(found, "Accepted")
    assert accepted is not None
    assert accepted.status == "True"
    assert found.dry_run == dry_run_of(peer_job_of(resource))


def peer_job_of(resource: GameResource) -> Any:
    from plan_fixtures import game_context

    return peer_job(game_context(resource))


def test_a_reason_that_is_no_name_is_an_error_in_the_list_of_unhealthy_peers() -> None:
    found = with_pods(ready_pod(0), failed_pod(1, 1, reason="not a name!")).status.unhealthy_peers
    assert [(each.index, each.reason) for each in found] == [(1, "Error")]


def test_an_evicted_peer_does_not_degrade_the_game() -> None:
    evicted = replace(failed_pod(1, 143), disrupted=True)
    found = condition(with_pods(ready_pod(0), ready_pod(2), ready_pod(3), evicted), "Degraded")
    assert found is not None
    assert found.reason == "AsExpected"


def test_the_status_of_another_controllers_game_is_not_changed() -> None:
    resource, _ = running(valid_game())
    theirs = with_status(game({"managedBy": "example.dev/other"}), resource.status)
    found = planned(theirs, EMPTY)
    assert found == Plan(resource.status)


def test_a_job_that_is_being_deleted_is_not_deleted_again() -> None:
    found = planned(valid_game({"suspend": True}), replace(EMPTY, job=JobFacts("sums-peers", deleting=True)))
    assert not found.deletions
