"""Conditions and events: the list of all conditions, how updates are merged, and which changes publish an event."""

from __future__ import annotations

import ast
import importlib
import inspect
import string
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
from plan_fixtures import (
    DEFAULTS,
    NOW,
    failed_pod,
    heard,
    job_with,
    later,
    ready_pod,
    running,
    settled,
    starting_pod,
    valid_game,
    with_status,
)

from swarmgame_api.status import REASONS, SwarmGameStatus
from swarmgame_operator.condition_reference import reference
from swarmgame_operator.plan import build_plan
from swarmgame_operator.plan.condition_policy import ConditionPolicy, ConditionUpdate, Reason
from swarmgame_operator.plan.conditions import CONDITIONS
from swarmgame_operator.plan.conditions.accepted import VALID
from swarmgame_operator.plan.conditions.complete import ALL_PEERS_SUCCEEDED, ROUNDS_REACHED
from swarmgame_operator.plan.conditions.failed import DEADLINE_EXCEEDED, FATAL_EXIT_CODE
from swarmgame_operator.plan.conditions.progressing import FINISHED
from swarmgame_operator.plan.conditions.ready import PEERS_READY, WAITING_FOR_BOOTNODE, WAITING_FOR_PEERS
from swarmgame_operator.plan.conditions.suspended import RESUMED
from swarmgame_operator.plan.reconcile_context import terminal_condition
from swarmgame_operator.plan.status_conditions import condition_events, merge_conditions

LATER = NOW + timedelta(seconds=60)
PAGE = Path(__file__).parents[4] / "docs" / "reference" / "conditions.md"


def test_the_schema_lists_every_condition_and_reason() -> None:
    declared = {(reason.type, reason.name) for policy in CONDITIONS for reason in policy.reasons}
    listed = {(type, name) for type, names in REASONS.items() for name in names}
    for type, name in sorted(declared - listed):
        pytest.fail(f"swarmgame_api.status lacks the reason {name} of {type}: add it to REASONS, then `make generate`")
    for type, name in sorted(listed - declared):
        pytest.fail(f"swarmgame_api.status lists the reason {name} of {type}, and no module of plan.conditions has it")
    assert len(CONDITIONS) == len(REASONS), "a condition stands in CONDITIONS twice"


@pytest.mark.parametrize("policy", CONDITIONS, ids=lambda policy: policy.type)
def test_a_condition_declares_all_reasons_of_its_module(policy: ConditionPolicy) -> None:
    module = importlib.import_module(policy.evaluate.__module__)
    assert {each for each in vars(module).values() if isinstance(each, Reason)} <= set(policy.reasons)
    assert {reason.type for reason in policy.reasons} == {policy.type}


@pytest.mark.parametrize("policy", CONDITIONS, ids=lambda policy: policy.type)
def test_a_reason_is_called_with_the_fields_of_its_message(policy: ConditionPolicy) -> None:
    module = importlib.import_module(policy.evaluate.__module__)
    for call in (node for node in ast.walk(ast.parse(inspect.getsource(module))) if isinstance(node, ast.Call)):
        reason = getattr(module, call.func.id, None) if isinstance(call.func, ast.Name) else None
        if isinstance(reason, Reason):
            fields = {name for _, name, _, _ in string.Formatter().parse(reason.message) if name is not None}
            assert {each.arg for each in call.keywords} == fields, f"{reason.name}, line {call.lineno}"


def test_the_reference_page_is_current() -> None:
    assert PAGE.read_text(encoding="utf-8") == reference(), "run `python -m swarmgame_operator.condition_reference`"


def test_a_message_is_one_line_of_bounded_length() -> None:
    message = FATAL_EXIT_CODE(problem="a\n b" * 2_000).message
    assert "\n" not in message
    assert len(message) == 2_000


def test_a_transition_is_dated_by_the_change_of_the_status_and_not_of_the_reason() -> None:
    first = merge_conditions(SwarmGameStatus(), [WAITING_FOR_BOOTNODE()], NOW, 1)
    status = SwarmGameStatus(conditions=first)
    (same,) = merge_conditions(status, [WAITING_FOR_PEERS(ready=1, desired=4, least=2)], LATER, 2)
    assert (same.reason, same.last_transition_time, same.observed_generation) == (
        "WaitingForPeers",
        "2026-01-31T12:00:00Z",
        2,
    )
    (other,) = merge_conditions(status, [PEERS_READY(ready=4, desired=4)], LATER, 2)
    assert (other.status, other.last_transition_time) == ("True", "2026-01-31T12:01:00Z")


def test_conditions_are_in_the_order_of_the_reference() -> None:
    updates = [ROUNDS_REACHED(rounds=1), RESUMED(), VALID(), FINISHED()]
    found = merge_conditions(SwarmGameStatus(), updates, NOW, 1)
    expected = {"Accepted", "Progressing", "Suspended", "Complete"}
    assert [each.type for each in found] == [type for type in REASONS if type in expected]


@pytest.mark.parametrize("first", [ROUNDS_REACHED(rounds=9), DEADLINE_EXCEEDED(seconds=9)])
@pytest.mark.parametrize("second", [FATAL_EXIT_CODE(problem="no"), ALL_PEERS_SUCCEEDED(succeeded=4, failures="")])
def test_the_first_end_is_the_only_one(first: ConditionUpdate, second: ConditionUpdate) -> None:
    status = SwarmGameStatus(conditions=merge_conditions(SwarmGameStatus(), [first], NOW, 1))
    assert merge_conditions(status, [second], LATER, 2) == status.conditions
    end = terminal_condition(status)
    assert end is not None
    assert end.type == first.type


def test_an_unchanged_status_publishes_no_event() -> None:
    resource, observed = running(valid_game())
    assert build_plan(resource, observed, DEFAULTS).events == ()
    assert build_plan(resource, later(observed, 5), DEFAULTS).events == ()


def test_a_new_game_publishes_that_it_is_accepted_and_what_it_waits_for() -> None:
    resource = valid_game()
    _, observed = settled(resource)
    assert [each.reason for each in build_plan(resource, observed, DEFAULTS).events] == [
        "Valid",
        "WaitingForBootnode",
        "ScalingUp",
    ]


def test_problems_are_warnings_and_recoveries_are_normal_events() -> None:
    resource, observed = running(valid_game())
    failing = build_plan(resource, replace(observed, pods=(ready_pod(0), failed_pod(1, 1))), DEFAULTS)
    assert ("Warning", "PeersFailing") in {(each.type, each.reason) for each in failing.events}
    healed = build_plan(with_status(resource, failing.status), observed, DEFAULTS)
    assert ("Normal", "AsExpected") in {(each.type, each.reason) for each in healed.events}
    ended = build_plan(resource, job_with(observed, ("Failed", "MaxFailedIndexesExceeded")), DEFAULTS)
    assert ("Warning", "TooManyFailedPeers") in {(each.type, each.reason) for each in ended.events}
    stalled = build_plan(resource, later(heard(observed), 10_000), DEFAULTS)
    assert [(each.type, each.reason) for each in stalled.events] == [("Warning", "Stalled")]


def test_an_event_fits_the_limit_of_the_api() -> None:
    conditions = merge_conditions(SwarmGameStatus(), [FATAL_EXIT_CODE(problem="x" * 5_000)], NOW, 1)
    (event,) = condition_events(SwarmGameStatus(), conditions)
    assert len(event.message) <= 1_024


def test_a_changed_count_is_a_new_message_and_no_event() -> None:
    resource, observed = running(valid_game())
    found = build_plan(resource, replace(observed, pods=(*observed.pods[:3], starting_pod(3))), DEFAULTS)
    assert found.events == ()
    assert found.status != resource.status


def test_the_status_of_a_settled_game_does_not_change_with_time() -> None:
    resource, observed = running(valid_game())
    for seconds in (1, 10, 100):
        assert build_plan(resource, later(observed, seconds), DEFAULTS).status == resource.status
