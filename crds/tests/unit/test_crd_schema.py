"""The CustomResourceDefinition: current, small, structural, and carrying every rule at its place."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from jsonschema import Draft4Validator
from pydantic import Field, StringConstraints
from structural import Schema, nodes

from swarmgame_api.base import Model
from swarmgame_api.crd import definition, document, main
from swarmgame_api.rules import all_rules, all_transitions
from swarmgame_api.schema import object_schema, validation
from swarmgame_api.yaml_io import load_documents

ROOT = Path(__file__).parents[3]
(VERSION,) = definition()["spec"]["versions"]
SCHEMA: Schema = VERSION["schema"]["openAPIV3Schema"]
NODES = dict(nodes(SCHEMA))


def test_the_committed_definition_is_current() -> None:
    assert (ROOT / "crds" / "swarmgame.yaml").read_text(encoding="utf-8") == document(), "run `make generate`"


def test_the_definition_is_written_where_it_is_asked_for(tmp_path: Path) -> None:
    assert main([str(tmp_path / "crd.yaml")]) == 0
    assert load_documents((tmp_path / "crd.yaml").read_text(encoding="utf-8")) == [definition()]
    assert main([str(tmp_path / "nowhere" / "crd.yaml")]) == 64


def test_the_definition_fits_where_kubectl_apply_keeps_its_copy() -> None:
    assert len(document().encode()) < 200_000


GOLDEN: list[tuple[str, Schema]] = [
    (
        "spec.game.maxRounds",
        {
            "format": "int32",
            "type": "integer",
            "minimum": 1,
            "maximum": 1_000_000_000,
            "description": "The game is complete after this many rounds.",
        },
    ),
    (
        "spec.game.trainer.with",
        {
            "type": "object",
            "additionalProperties": {"x-kubernetes-preserve-unknown-fields": True, "nullable": True},
            "maxProperties": 256,
            "description": "The part's own configuration, validated by its `Config` before anything starts.",
            "default": {},
        },
    ),
    (
        "spec.peers.processesPerPeer",
        {
            "x-kubernetes-int-or-string": True,
            "anyOf": [{"type": "integer"}, {"type": "string"}],
            "pattern": "^(auto)$",
            "maxLength": 4,
            "minimum": 1,
            "maximum": 64,
            "description": "Processes of one peer, which share its policy: one a GPU. auto: as many as it has GPUs, and at least 1.",
            "default": "auto",
        },
    ),
    (
        "spec.networkPolicy.mode",
        {
            "type": "string",
            "enum": ["None", "Isolated"],
            "description": "Isolated: peers reach DNS, one another, the gateway and the hub, and nothing else. None: no policy is made.",
            "default": "Isolated",
        },
    ),
    (
        "spec.storage.sharedMemory",
        {
            "x-kubernetes-int-or-string": True,
            "anyOf": [{"type": "integer"}, {"type": "string"}],
            "minimum": 0,
            "maximum": 10**15 - 1,
            "maxLength": 32,
            "pattern": r"^[0-9]{1,15}(\.[0-9]{1,9})?(m|k|M|G|T|P|E|Ki|Mi|Gi|Ti|Pi|Ei)?$",
            "description": "Greatest size of /dev/shm, which counts towards the pod's memory.",
            "default": "8Gi",
        },
    ),
    (
        "status.conditions[*].lastTransitionTime",
        {
            "type": "string",
            "format": "date-time",
            "maxLength": 32,
            "pattern": "^[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9:.]{8,18}Z$",
            "description": "When status last changed.",
        },
    ),
]


@pytest.mark.parametrize(("path", "golden"), GOLDEN, ids=[path for path, _ in GOLDEN])
def test_a_field_becomes_a_node(path: str, golden: Schema) -> None:
    assert NODES[path] == golden


def test_lists_whose_entries_have_names_are_merged_by_them() -> None:
    keyed = {
        path: node["x-kubernetes-list-map-keys"] for path, node in NODES.items() if "x-kubernetes-list-map-keys" in node
    }
    assert keyed == {
        "spec.game.roles": ["name"],
        "spec.game.modules": ["name"],
        "spec.peers.env": ["name"],
        "status.unhealthyPeers": ["index"],
        "status.progress.metrics": ["name"],
        "status.conditions": ["type"],
    }
    for path, keys in keyed.items():
        assert set(keys) <= set(NODES[path]["items"]["required"])


def _typed(node: Schema) -> bool:
    return (
        "type" in node
        or bool(node.get("x-kubernetes-int-or-string"))
        or bool(node.get("x-kubernetes-preserve-unknown-fields"))
    )


def test_the_schema_is_structural() -> None:
    known = {
        "type",
        "format",
        "description",
        "properties",
        "required",
        "items",
        "additionalProperties",
        "default",
        "enum",
        "pattern",
    }
    known |= {
        "minimum",
        "maximum",
        "minLength",
        "maxLength",
        "minItems",
        "maxItems",
        "minProperties",
        "maxProperties",
        "nullable",
        "anyOf",
    }
    for path, node in NODES.items():
        assert _typed(node), path
        assert all(word in known or word.startswith("x-kubernetes-") for word in node), path
        assert not ("properties" in node and "additionalProperties" in node), path
        assert "anyOf" not in node or node["anyOf"] == [{"type": "integer"}, {"type": "string"}], path
        assert node.get("type") != "array" or "items" in node, path


def test_there_are_no_floats() -> None:
    assert [path for path, node in NODES.items() if node.get("type") == "number"] == []


def test_everything_that_may_grow_has_a_bound_because_the_cost_of_rules_is_estimated_from_it() -> None:
    for path, node in NODES.items():
        if path in {"apiVersion", "kind"}:
            continue  # the server's own
        if node.get("type") == "string":
            assert "maxLength" in node or "enum" in node, path
        if node.get("type") == "array":
            assert "maxItems" in node, path
        if "additionalProperties" in node:
            assert "maxProperties" in node, path
        if node.get("type") == "integer":
            assert {"minimum", "maximum"} <= set(node), path


def test_everything_is_described_for_kubectl_explain() -> None:
    silent = [path for path, node in NODES.items() if not node.get("description") and not path.endswith(("{}", "[*]"))]
    assert silent == ["metadata", "metadata.name"]


def test_every_default_is_one_that_its_own_node_takes() -> None:
    for path, node in NODES.items():
        if "default" in node:
            Draft4Validator(node).validate(node["default"])
            assert path.startswith("spec."), path


def test_every_rule_and_every_transition_stands_at_its_place() -> None:
    placed = [(path, placed) for path, node in NODES.items() for placed in node.get("x-kubernetes-validations", [])]
    expected = [(path, validation(rule)) for path, _, rule in all_rules()]
    expected += [(path, validation(transition)) for path, _, transition in all_transitions()]
    for path, rule in expected:
        if path == "":
            rule["fieldPath"] = f".metadata{rule['fieldPath']}"
        assert (path, rule) in placed
    assert len(placed) == len(expected)


def test_a_rule_points_at_a_field_that_exists_and_speaks_in_one_line() -> None:
    for path, node in NODES.items():
        for rule in node.get("x-kubernetes-validations", []):
            assert (path + rule.get("fieldPath", "")).removeprefix(".") in NODES
            assert rule["message"].startswith("expected ")
            assert "\n" not in rule["message"]


def _declared(path: str) -> bool:
    return re.sub(r"\[\?\(.*?\)\]", "[*]", path).removeprefix(".") in NODES


def test_columns_and_the_scale_subresource_read_fields_that_exist() -> None:
    for column in VERSION["additionalPrinterColumns"]:
        path = column["jsonPath"]
        assert path.startswith(".metadata.") or _declared(path), path
    scale = VERSION["subresources"]["scale"]
    assert all(_declared(path) for path in scale.values())
    assert NODES[scale["specReplicasPath"][1:]]["type"] == NODES[scale["statusReplicasPath"][1:]]["type"] == "integer"


def test_the_columns_are_those_that_a_user_of_jobs_looks_for() -> None:
    columns = VERSION["additionalPrinterColumns"]
    narrow = [column["name"] for column in columns if "priority" not in column]
    assert narrow == ["Ready", "Reason", "Peers", "Desired", "Round", "Rounds", "Reward", "Age"]
    assert [column["name"] for column in columns if column.get("priority") == 1] == [
        "Registered",
        "Queue",
        "Chain-Round",
        "Model",
        "Suspended",
    ]


Fixed = Annotated[str, StringConstraints(max_length=4)]


@pytest.mark.parametrize(
    ("annotation", "words"),
    [
        (float, "no counterpart"),
        (str, "greatest length"),
        (Annotated[str, StringConstraints(max_length=4, to_lower=True)], "to_lower"),
        (Annotated[int, Field(ge=0)], "least and a greatest"),
        (Annotated[int, Field(ge=0, le=4, multiple_of=2)], "MultipleOf"),
        (tuple[Fixed, ...], "greatest length"),
        (tuple[Fixed, Fixed], "fixed form"),
        (dict[str, Fixed], "greatest length"),
        (Literal[1, 2], "no text"),
        (Fixed | int, "a union"),
    ],
)
def test_what_a_schema_cannot_say_is_refused_rather_than_left_out(annotation: Any, words: str) -> None:
    made = type("Made", (Model,), {"__annotations__": {"field": annotation}, "__module__": __name__})
    with pytest.raises(TypeError, match=words) as caught:
        object_schema(made)
    assert caught.value.__notes__ == ["in Made.field"]


def test_a_default_object_is_written_out_because_the_server_holds_it_against_the_rules_before_it_fills_it_in() -> None:
    assert NODES["spec.peers"]["default"]["replicas"] == NODES["spec.peers.replicas"]["default"]
