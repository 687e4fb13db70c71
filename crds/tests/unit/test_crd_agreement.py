"""Schema and models say the same: what one takes the other takes, and both fill in the same defaults."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, event, given, settings
from jsonschema import Draft4Validator
from manifests import LARGEST, complete, fields, wrong_values
from structural import Schema, documents, fill_in, nodes

from swarmgame_api import InvalidManifest, load_manifest, loads_manifest, parse_manifest
from swarmgame_api.crd import definition
from swarmgame_api.errors import Problem
from swarmgame_api.load import manifest_data
from swarmgame_api.overrides import apply_overrides, parse_override
from swarmgame_api.reference import MINIMAL
from swarmgame_api.rules import all_rules
from swarmgame_api.type_descriptions import TypeInfo
from swarmgame_api.yaml_io import load_documents

ROOT = Path(__file__).parents[3]
SPEC: Schema = definition()["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]
SERVER = Draft4Validator(SPEC)
RULES = {placed.rule.expected for placed in all_rules()}


def manifest(spec: Any) -> dict[str, Any]:
    return {"apiVersion": "swarmgame.dev/v1alpha1", "kind": "SwarmGame", "metadata": {"name": "a"}, "spec": spec}


def texts_for_quantities(schema: Schema, value: Any) -> Any:
    """The only thing that reading changes: a quantity that was written as a number is a text."""
    if schema.get("x-kubernetes-int-or-string") and isinstance(value, int) and "Ki" in schema["pattern"]:
        return str(value)
    if isinstance(value, dict):
        children = schema.get("properties", {})
        other = schema.get("additionalProperties", {})
        return {name: texts_for_quantities(children.get(name, other), child) for name, child in value.items()}
    if isinstance(value, list):
        return [texts_for_quantities(schema.get("items", {}), child) for child in value]
    return value


@settings(
    max_examples=100,
    deadline=None,
    phases=[Phase.explicit, Phase.reuse, Phase.generate, Phase.shrink],
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
@given(documents(SPEC))
def test_what_the_schema_takes_breaks_at_most_rules_and_gets_the_same_defaults_on_both_sides(
    spec: dict[str, Any],
) -> None:
    SERVER.validate(spec)
    problems: tuple[Problem, ...] = ()
    try:
        game = parse_manifest(manifest(spec))
    except InvalidManifest as error:
        problems = error.problems
    assert {problem.expected for problem in problems} <= RULES, problems
    event("breaks a rule" if problems else "taken")
    if problems:
        return
    filled = fill_in(SPEC, spec)
    SERVER.validate(filled)
    assert manifest_data(game)["spec"] == texts_for_quantities(SPEC, filled)
    assert parse_manifest(manifest(filled)) == game


@pytest.mark.parametrize(
    "text", [MINIMAL, LARGEST, *(path.read_text() for path in sorted(ROOT.glob("examples/*/game.yaml")))]
)
def test_a_written_manifest_gets_the_same_defaults_on_both_sides(text: str) -> None:
    (document,) = load_documents(text)
    assert isinstance(document, dict)
    filled = fill_in(SPEC, document["spec"])
    assert manifest_data(loads_manifest(text))["spec"] == texts_for_quantities(SPEC, filled)


@pytest.mark.parametrize("path", sorted(ROOT.glob("examples/*/game.yaml")), ids=lambda path: path.parent.name)
def test_every_example_is_one_that_the_schema_takes(path: Path) -> None:
    SERVER.validate(manifest_data(load_manifest(path))["spec"])


def _server_takes(data: Any) -> bool:
    return isinstance(data["spec"], dict) and SERVER.is_valid(data["spec"])


@pytest.mark.parametrize(
    ("path", "shape"), [field for field in fields() if field[0].startswith("spec.")], ids=lambda value: str(value)[:60]
)
def test_a_value_of_the_wrong_kind_is_refused_by_both(path: str, shape: TypeInfo) -> None:
    steps, _ = parse_override(f"{path}=x")
    for wrong in wrong_values(shape):
        changed = apply_overrides(complete(), [(steps, wrong)])
        assert _server_takes(changed) == _reader_takes(changed), wrong


def _reader_takes(data: Any) -> bool:
    """Whether the models take it as far as fields go."""
    try:
        parse_manifest(json.loads(json.dumps(data)))
    except InvalidManifest as error:
        return all(problem.expected in RULES for problem in error.problems)
    return True


def _edges() -> list[tuple[str, Any]]:
    found: list[tuple[str, Any]] = []
    for path, node in nodes(SPEC, "spec"):
        place = path.replace("[*]", "[0]")
        if "{}" in path or "valueFrom" in path or ".emptyDir" in path or "checkpoints.claimTemplate" in path:
            continue
        if node.get("type") == "integer":
            found += [
                (place, value) for value in (node["minimum"] - 1, node["minimum"], node["maximum"], node["maximum"] + 1)
            ]
        if node.get("x-kubernetes-int-or-string"):
            found += [
                (place, value) for value in (node["minimum"] - 1, node["minimum"], node["maximum"], node["maximum"] + 1)
            ]
        if node.get("type") == "string" and "maxLength" in node:
            least, most = node.get("minLength", 0), node["maxLength"]
            found += [(place, "a" * length) for length in (least - 1, least, most, most + 1) if length >= 0]
        if node.get("type") == "array":
            found.append((place, []))
    return found


@pytest.mark.parametrize(("path", "value"), _edges(), ids=lambda value: str(value)[:40])
def test_a_value_at_the_edge_of_its_bounds_is_taken_or_refused_by_both(path: str, value: Any) -> None:
    path = path.replace("modules[0].configMapRef", "modules[1].configMapRef")
    changed = apply_overrides(complete(), [(parse_override(f"{path}=x")[0], value)])
    assert _server_takes(changed) == _reader_takes(changed)
