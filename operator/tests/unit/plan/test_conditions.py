"""Conditions and events: what turns, when it is dated, and what is worth telling."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest
from worlds import (
    DEFAULTS,
    NOW,
    failed_pod,
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
from swarmgame_operator import reasons
from swarmgame_operator.plan import plan
from swarmgame_operator.plan.conditions import events, terminal, turned

LATER = NOW + timedelta(seconds=60)


def test_a_transition_is_dated_when_the_status_turns_and_not_when_only_the_reason_does() -> None:
    first = turned(SwarmGameStatus(), [reasons.waiting_for_bootnode()], NOW, 1)
    status = SwarmGameStatus(conditions=first)
    (same,) = turned(status, [reasons.waiting_for_peers(1, 4, 2)], LATER, 2)
    assert (same.reason, same.last_transition_time, same.observed_generation) == (
        "WaitingForPeers",
        "2026-01-31T12:00:00Z",
        2,
    )
    (other,) = turned(status, [reasons.peers_ready(4, 4)], LATER, 2)
    assert (other.status, other.last_transition_time) == ("True", "2026-01-31T12:01:00Z")


def test_conditions_stand_in_the_order_of_the_reference() -> None:
    found = turned(
        SwarmGameStatus(), [reasons.rounds_reached(1), reasons.resumed(), reasons.valid(), reasons.finished()], NOW, 1
    )
    assert [each.type for each in found] == [
        type for type in REASONS if type in {"Accepted", "Progressing", "Suspended", "Complete"}
    ]


@pytest.mark.parametrize("first", [reasons.rounds_reached(9), reasons.deadline_exceeded(9)])
@pytest.mark.parametrize("second", [reasons.fatal_exit_code("no"), reasons.all_peers_succeeded(4, 0)])
def test_the_first_end_is_the_only_one(first: reasons.Verdict, second: reasons.Verdict) -> None:
    status = SwarmGameStatus(conditions=turned(SwarmGameStatus(), [first], NOW, 1))
    assert turned(status, [second], LATER, 2) == status.conditions
    end = terminal(status)
    assert end is not None
    assert end.type == first.type


def test_every_sentence_belongs_to_a_reason_of_the_reference() -> None:
    """The functions of `reasons`, called with anything, give only what the reference lists; and all of it."""
    samples: dict[str, object] = {"missing": ["x"]}
    numbers = {
        "count",
        "desired",
        "least",
        "ready",
        "active",
        "round",
        "rounds",
        "left",
        "seconds",
        "usual",
        "behind",
        "every",
    }
    numbers |= {"succeeded", "failed", "allowed"}
    found = set()
    for name, make in vars(reasons).items():
        if (
            name.startswith("_")
            or not callable(make)
            or getattr(make, "__annotations__", {}).get("return") != "Verdict"
        ):
            continue
        arguments = [each for each in make.__annotations__ if each != "return"]
        verdict = make(*(samples.get(each, 3 if each in numbers else "words") for each in arguments))
        assert verdict.reason in REASONS[verdict.type]
        found.add((verdict.type, verdict.reason))
    # Some functions give one of two reasons by their numbers.
    found |= {("Registered", "AllRegistered"), ("Registered", "PartlyRegistered")}
    assert found == {(type, reason) for type, each in REASONS.items() for reason in each}


def test_nothing_is_told_twice() -> None:
    resource, observed = running(valid_game())
    assert plan(resource, observed, DEFAULTS).events == ()
    assert plan(resource, later(observed, 5), DEFAULTS).events == ()


def test_a_new_game_tells_that_it_was_accepted_and_what_it_waits_for() -> None:
    resource = valid_game()
    _, observed = settled(resource)
    assert [each.reason for each in plan(resource, observed, DEFAULTS).events] == [
        "Valid",
        "WaitingForBootnode",
        "ScalingUp",
    ]


def test_bad_news_are_warnings_and_good_news_are_not() -> None:
    resource, observed = running(valid_game())
    failing = plan(resource, replace(observed, pods=(ready_pod(0), failed_pod(1, 1))), DEFAULTS)
    assert ("Warning", "PeersFailing") in {(each.type, each.reason) for each in failing.events}
    healed = plan(with_status(resource, failing.status), observed, DEFAULTS)
    assert ("Normal", "AsExpected") in {(each.type, each.reason) for each in healed.events}
    ended = plan(resource, job_with(observed, ("Failed", "MaxFailedIndexesExceeded")), DEFAULTS)
    assert ("Warning", "TooManyFailedPeers") in {(each.type, each.reason) for each in ended.events}
    stalled = plan(resource, later(observed, 10_000), DEFAULTS)
    assert [(each.type, each.reason) for each in stalled.events] == [("Warning", "Stalled")]


def test_an_event_fits_into_what_the_api_takes() -> None:
    conditions = turned(SwarmGameStatus(), [reasons.peers_failing("x" * 5_000)], NOW, 1)
    (event,) = events(SwarmGameStatus(), conditions)
    assert len(event.message) <= 1_024


def test_a_count_that_changes_is_a_new_sentence_and_no_event() -> None:
    resource, observed = running(valid_game())
    found = plan(resource, replace(observed, pods=(*observed.pods[:3], starting_pod(3))), DEFAULTS)
    assert found.events == ()
    assert found.status != resource.status


def test_the_status_of_a_settled_game_does_not_change_with_time_alone() -> None:
    resource, observed = running(valid_game())
    for seconds in (1, 10, 100):
        assert plan(resource, later(observed, seconds), DEFAULTS).status == resource.status
