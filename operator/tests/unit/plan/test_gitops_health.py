"""What Flux (kstatus) and Argo CD see of a game, by the rules that they publish and the scripts of the guide.

kstatus: cli-utils, pkg/kstatus/status/generic.go and core.go. Argo CD runs a script in Lua with the object as `obj`;
Flux evaluates expressions in CEL with the object's fields as variables.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import celpy
import lupa
import pytest
import yaml
from plan_fixtures import DEFAULTS, EMPTY, body, failed_pod, job_with, running, settled, starting_pod, valid_game
from reason_cases import refused

from swarmgame_api.resource import GameResource, status_document
from swarmgame_operator.plan import Plan, build_plan
from swarmgame_operator.snapshot import Observed

GUIDE = Path(__file__).parents[4] / "docs" / "guide" / "gitops.md"


def block(language: str) -> str:
    (found,) = re.findall(rf"^```{language}\n(.*?)^```", GUIDE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    return str(found)


def seen(found: Plan, spec: dict[str, Any] | None = None) -> dict[str, Any]:
    """Return the object as the API server has it once the plan's status is written."""
    return {**body(spec), "status": status_document(found.status)}


def planned(game: tuple[GameResource, Observed]) -> Plan:
    return build_plan(*game, DEFAULTS)


def ended(*conditions: tuple[str, str], **changes: Any) -> Plan:
    resource, observed = running(valid_game())
    return build_plan(resource, job_with(replace(observed, **changes), *conditions), DEFAULTS)


def starting() -> Plan:
    resource, observed = running(valid_game())
    return build_plan(resource, replace(observed, pods=(starting_pod(0),)), DEFAULTS)


GAMES: dict[str, tuple[Callable[[], Plan], str, str, str]] = {
    "new": (lambda: build_plan(valid_game(), EMPTY, DEFAULTS), "InProgress", "InProgress", "Progressing"),
    "starting": (starting, "InProgress", "InProgress", "Progressing"),
    "running": (lambda: planned(running(valid_game())), "Current", "Current", "Healthy"),
    "complete": (lambda: ended(("Complete", ""), pods=()), "Current", "Current", "Healthy"),
    "failed": (
        lambda: ended(("Failed", "PodFailurePolicy"), pods=(failed_pod(0, 78),)),
        "InProgress",
        "Failed",
        "Degraded",
    ),
    "blocked": (refused, "InProgress", "InProgress", "Degraded"),
    "suspended": (lambda: planned(settled(valid_game({"suspend": True}))), "InProgress", "Current", "Suspended"),
}


def kstatus(found: dict[str, Any]) -> str:
    """Return kstatus's verdict on a custom object."""
    if found["metadata"].get("deletionTimestamp"):
        return "Terminating"
    if found["status"].get("observedGeneration", found["metadata"]["generation"]) != found["metadata"]["generation"]:
        return "InProgress"
    conditions = {each["type"]: each["status"] for each in found["status"].get("conditions", ())}
    if conditions.get("Reconciling") == "True":
        return "InProgress"
    if conditions.get("Stalled") == "True":
        return "Failed"
    return "InProgress" if conditions.get("Ready") in ("False", "Unknown") else "Current"


def flux(found: dict[str, Any]) -> str:
    """Return what Flux makes of the guide's expressions: a failure is looked for first."""
    (check,) = yaml.safe_load(block("yml"))["healthCheckExprs"]
    assert (check["apiVersion"], check["kind"]) == (found["apiVersion"], found["kind"])
    environment = celpy.Environment()
    for verdict in ("failed", "current"):
        program = environment.program(environment.compile(check[verdict]))
        if program.evaluate({key: celpy.json_to_cel(value) for key, value in found.items()}):
            return verdict.capitalize()
    return "InProgress"


def argo(found: dict[str, Any]) -> str:
    runtime = lupa.LuaRuntime(unpack_returned_tuples=True)

    def table(value: Any) -> Any:
        if isinstance(value, dict):
            return runtime.table_from({key: table(each) for key, each in value.items()})
        return runtime.table_from([table(each) for each in value]) if isinstance(value, list) else value

    runtime.globals().obj = table(json.loads(json.dumps(found)))
    health = runtime.execute(block("lua"))
    assert health.message
    return str(health.status)


@pytest.mark.parametrize("name", GAMES)
def test_a_game_is_as_healthy_as_the_guide_says(name: str) -> None:
    make_plan, expected, with_expressions, with_script = GAMES[name]
    found = seen(make_plan())
    assert kstatus(found) == expected
    assert flux(found) == with_expressions
    assert argo(found) == with_script


def test_a_version_that_the_operator_has_not_seen_is_in_progress() -> None:
    found = seen(planned(running(valid_game())))
    found["metadata"]["generation"] += 1
    assert (kstatus(found), flux(found), argo(found)) == ("InProgress", "InProgress", "Progressing")


def test_an_object_without_a_status_is_in_progress() -> None:
    found = {**body(), "status": {}}
    assert (flux(found), argo(found)) == ("InProgress", "Progressing")
