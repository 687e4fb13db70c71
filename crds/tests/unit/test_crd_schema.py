"""The CustomResourceDefinition: current, small, and with the models' bounds; tests/api shows that a server agrees."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from jsonschema import Draft4Validator
from manifests import complete
from pydantic import Field, StringConstraints
from structural import Schema, nodes

from swarmgame_api import InvalidManifest, parse_manifest
from swarmgame_api.base import Model
from swarmgame_api.crd import definition, document, main
from swarmgame_api.overrides import apply_overrides, parse_override
from swarmgame_api.rules import all_rules
from swarmgame_api.schema import object_schema
from swarmgame_api.yaml_io import load_documents

ROOT = Path(__file__).parents[3]
(VERSION,) = definition()["spec"]["versions"]
SCHEMA: Schema = VERSION["schema"]["openAPIV3Schema"]
NODES = dict(nodes(SCHEMA))
SPEC = Draft4Validator(SCHEMA["properties"]["spec"])
RULES = {placed.rule.expected for placed in all_rules()}


def test_the_committed_definition_is_current() -> None:
    assert (ROOT / "crds" / "swarmgame.yaml").read_text(encoding="utf-8") == document(), "run `make generate`"


def test_the_definition_is_written_to_the_given_file(tmp_path: Path) -> None:
    assert main([str(tmp_path / "crd.yaml")]) == 0
    assert load_documents((tmp_path / "crd.yaml").read_text(encoding="utf-8")) == [definition()]
    assert main([str(tmp_path / "nowhere" / "crd.yaml")]) == 64


def test_the_definition_fits_where_kubectl_apply_keeps_its_copy() -> None:
    assert len(document().encode()) < 200_000


def test_lists_with_named_entries_are_merged_by_name() -> None:
    keyed = {
        path: node["x-kubernetes-list-map-keys"] for path, node in NODES.items() if "x-kubernetes-list-map-keys" in node
    }
    assert keyed == {
        "spec.game.roles": ["name"],
        "spec.game.modules": ["name"],
        "spec.peers.env": ["name"],
        "spec.podDefaults.env": ["name"],
        "spec.podDefaults.imagePullSecrets": ["name"],
        "status.unhealthyPeers": ["index"],
        "status.progress.metrics": ["name"],
        "status.conditions": ["type"],
    }
    for path, keys in keyed.items():
        assert set(keys) <= set(NODES[path]["items"]["required"])


def test_everything_is_described_for_kubectl_explain() -> None:
    silent = [path for path, node in NODES.items() if not node.get("description") and not path.endswith(("{}", "[*]"))]
    assert silent == ["metadata", "metadata.name"]


Fixed = Annotated[str, StringConstraints(max_length=4)]


@pytest.mark.parametrize(
    ("annotation", "text"),
    [
        (float, "no counterpart"),
        (str, "maximum length"),
        (Annotated[str, StringConstraints(max_length=4, to_lower=True)], "to_lower"),
        (Annotated[int, Field(ge=0)], "minimum and a maximum"),
        (Annotated[int, Field(ge=0, le=4, multiple_of=2)], "MultipleOf"),
        (tuple[Fixed, ...], "maximum length"),
        (tuple[Fixed, Fixed], "fixed length"),
        (dict[str, Fixed], "maximum length"),
        (Literal[1, 2], "not a text"),
        (Fixed | int, "a union"),
    ],
)
def test_a_constraint_without_a_counterpart_in_the_schema_is_an_error(annotation: Any, text: str) -> None:
    made = type("Made", (Model,), {"__annotations__": {"field": annotation}, "__module__": __name__})
    with pytest.raises(TypeError, match=text) as caught:
        object_schema(made)
    assert caught.value.__notes__ == ["in Made.field"]


def boundary_values() -> list[tuple[str, object]]:
    """Values just inside and outside of every bound of the spec, with the path where they are put."""
    found: list[tuple[str, object]] = []
    for path, node in nodes(SCHEMA["properties"]["spec"], "spec"):
        place = path.replace("modules[*].configMapRef", "modules[1].configMapRef").replace("[*]", "[0]")
        if "{}" in path or "valueFrom" in path or ".emptyDir" in path or "checkpoints.claimTemplate" in path:
            continue  # free-form, or absent from the complete manifest
        if "minimum" in node:
            low, high = node["minimum"], node["maximum"]
            found += [(place, value) for value in (low - 1, low, high, high + 1)]
        if node.get("type") == "string" and "maxLength" in node:
            low, high = node.get("minLength", 0), node["maxLength"]
            found += [(place, "a" * length) for length in (low - 1, low, high, high + 1) if length >= 0]
        if node.get("type") == "array":
            found.append((place, []))
    return found


@pytest.mark.parametrize(("path", "value"), boundary_values(), ids=lambda value: str(value)[:40])
def test_schema_and_models_have_the_same_bounds(path: str, value: object) -> None:
    changed: Any = apply_overrides(complete(), [(parse_override(f"{path}=x")[0], value)])
    try:
        parse_manifest(changed)
        fields_valid = True
    except InvalidManifest as error:
        fields_valid = all(problem.expected in RULES for problem in error.problems)
    assert SPEC.is_valid(changed["spec"]) == fields_valid
