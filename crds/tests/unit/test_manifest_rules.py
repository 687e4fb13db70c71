"""Rules between fields: each accepts one manifest and refuses another, with the path and text of the table."""

from __future__ import annotations

import pytest
from rule_cases import CASES, CHANGES, rule_of, transition_of

from swarmgame_api import InvalidManifest, loads_manifest
from swarmgame_api.reference import MINIMAL
from swarmgame_api.rules import all_rules, all_transitions, change_problems


@pytest.mark.parametrize(("path", "text", "refused", "accepted"), CASES)
def test_a_rule_refuses_one_manifest_and_accepts_another(
    path: str, text: str, refused: list[str], accepted: list[str]
) -> None:
    with pytest.raises(InvalidManifest) as caught:
        loads_manifest(MINIMAL, refused)
    found = [problem for problem in caught.value.problems if problem.path == path and text in problem.expected]
    assert len(found) == 1, caught.value
    loads_manifest(MINIMAL, accepted)


def test_every_rule_of_the_table_is_among_the_cases() -> None:
    covered = [rule_of(path, text) for path, text, _, _ in CASES]
    assert [f"{rule.path}: {rule.rule.expected}" for rule in all_rules() if rule not in covered] == []


def test_every_transition_is_among_the_changes_once_allowed_and_once_not() -> None:
    covered = {(transition_of(path), allowed) for path, _, _, allowed in CHANGES}
    assert covered == {(transition, allowed) for transition in all_transitions() for allowed in (True, False)}


@pytest.mark.parametrize(("path", "before", "after", "allowed"), CHANGES)
def test_what_is_immutable_may_not_change_and_the_rest_may(
    path: str, before: list[str], after: list[str], allowed: bool
) -> None:
    problems = change_problems(loads_manifest(MINIMAL, before), loads_manifest(MINIMAL, after))
    assert [problem.path for problem in problems] == ([] if allowed else [path])
