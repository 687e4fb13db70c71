"""Which changes of a status may wait: tables over every field of the status."""

from __future__ import annotations

from typing import Any

import pytest

from swarmgame_api.schema import object_schema
from swarmgame_api.status import CoordinationStatus, SwarmGameStatus
from swarmgame_operator.plan.status_changes import COUNTS, only_counts

CONDITION = {
    "type": "Ready",
    "status": "False",
    "reason": "WaitingForPeers",
    "message": "3 of 8 peers are ready.",
    "observedGeneration": 4,
    "lastTransitionTime": "2026-01-31T12:00:00Z",
}
STATUS: dict[str, Any] = {
    "observedGeneration": 4,
    "replicas": 3,
    "peers": {"desired": 8, "ready": 3},
    "progress": {"round": 3, "metrics": [{"name": "reward", "value": "0.25"}]},
    "coordination": {"chainId": 1, "round": 3, "lastObservedBlock": 70},
    "conditions": [CONDITION],
}


@pytest.mark.parametrize("name", sorted(object_schema(SwarmGameStatus)["properties"]))
def test_every_field_of_the_status_is_written_at_once_unless_it_is_named_as_a_count(name: str) -> None:
    may_wait = name in COUNTS and not COUNTS[name]
    before, after = ({**STATUS, name: [{"type": each}] if name == "conditions" else {"chainId": each}} for each in "ab")
    assert only_counts(before, after) == may_wait


def test_every_named_count_is_a_field_of_the_status() -> None:
    properties = object_schema(SwarmGameStatus)["properties"]
    assert set(COUNTS) <= set(properties)
    assert set(COUNTS["coordination"]) <= set(object_schema(CoordinationStatus)["properties"])


@pytest.mark.parametrize(
    ("field", "value", "may_wait"),
    [
        ("message", "4 of 8 peers are ready.", True),
        ("status", "True", False),
        ("reason", "WaitingForBootnode", False),
        ("observedGeneration", 5, False),
        ("lastTransitionTime", "2026-01-31T12:00:01Z", False),
    ],
)
def test_of_a_condition_only_the_text_may_wait(field: str, value: Any, may_wait: bool) -> None:
    assert only_counts(STATUS, {**STATUS, "conditions": [{**CONDITION, field: value}]}) == may_wait


@pytest.mark.parametrize(
    ("field", "value", "may_wait"),
    [("round", 4, True), ("lastObservedBlock", 71, True), ("chainId", 2, False), ("contractAddress", "0x1", False)],
)
def test_of_the_chain_only_its_round_and_block_may_wait(field: str, value: Any, may_wait: bool) -> None:
    after = {**STATUS, "coordination": {**STATUS["coordination"], field: value}}
    assert only_counts(STATUS, after) == may_wait


@pytest.mark.parametrize("name", [*STATUS, "checkpoint"])
def test_a_field_that_appears_or_vanishes_is_written_at_once(name: str) -> None:
    without = {key: value for key, value in STATUS.items() if key != name}
    assert not only_counts(without, {**STATUS, name: STATUS.get(name, {"round": 1})})
    assert not only_counts({**STATUS, name: STATUS.get(name, {"round": 1})}, without)
