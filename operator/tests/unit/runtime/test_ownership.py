"""Drift, from managedFields as real API servers write them."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest

from swarmgame_operator.ownership import missing_fields, owned_fields

MANIFEST: dict[str, Any] = {
    "apiVersion": "v1",
    "kind": "Service",
    "metadata": {
        "name": "s",
        "namespace": "n",
        "labels": {"a": "1", "b": "2"},
        "ownerReferences": [{"uid": "u"}],
        "finalizers": ["x/y"],
    },
    "spec": {
        "selector": {"role": "peer"},
        "clusterIP": "None",
        "ports": [{"name": "p2p", "port": 31000}, {"name": "http", "port": 8080, "protocol": "TCP"}],
        "volumes": [{"name": "tmp", "emptyDir": {}}],
        "command": ["a", "b"],
    },
}
FIELDS: dict[str, Any] = {
    "f:metadata": {
        "f:labels": {"f:a": {}, "f:b": {}},
        "f:ownerReferences": {'k:{"uid":"u"}': {}},
        "f:finalizers": {'v:"x/y"': {}},
    },
    "f:spec": {
        "f:selector": {},
        "f:clusterIP": {},
        "f:command": {},
        "f:ports": {
            'k:{"port":31000,"protocol":"TCP"}': {".": {}, "f:name": {}, "f:port": {}},
            'k:{"port":8080,"protocol":"TCP"}': {".": {}, "f:name": {}, "f:port": {}, "f:protocol": {}},
        },
        "f:volumes": {'k:{"name":"tmp"}': {".": {}, "f:emptyDir": {}, "f:name": {}}},
    },
}


def body(fields: dict[str, Any], manager: str = "us", **extra: Any) -> dict[str, Any]:
    return {"metadata": {"managedFields": [{"manager": manager, "operation": "Apply", "fieldsV1": fields, **extra}]}}


def test_an_object_just_applied_has_not_drifted() -> None:
    assert missing_fields(MANIFEST, owned_fields(body(FIELDS), "us")) == ()


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        (("f:metadata", "f:labels", "f:b"), "metadata.labels.b"),
        (("f:metadata", "f:finalizers", 'v:"x/y"'), "metadata.finalizers"),
        (("f:spec", "f:clusterIP"), "spec.clusterIP"),
        (("f:spec", "f:selector"), "spec.selector"),
        (("f:spec", "f:command"), "spec.command"),
        (("f:spec", "f:ports", 'k:{"port":31000,"protocol":"TCP"}'), "spec.ports[0]"),
        (("f:spec", "f:ports", 'k:{"port":8080,"protocol":"TCP"}', "f:name"), "spec.ports[1].name"),
        (("f:spec", "f:volumes", 'k:{"name":"tmp"}'), "spec.volumes"),
    ],
)
def test_a_field_that_is_not_owned_any_more_is_named(path: tuple[str, ...], expected: str) -> None:
    fields = copy.deepcopy(FIELDS)
    take(fields, path)
    assert missing_fields(MANIFEST, owned_fields(body(fields), "us")) == (expected,)


def take(fields: dict[str, Any], path: tuple[str, ...]) -> None:
    """Remove a field from an entry as an API server does, with the fields that become empty."""
    if len(path) > 1:
        take(fields[path[0]], path[1:])
    if len(path) == 1 or not fields[path[0]]:
        del fields[path[0]]


def test_a_map_that_is_owned_without_its_fields_has_lost_them() -> None:
    fields = copy.deepcopy(FIELDS)
    fields["f:metadata"]["f:labels"] = {".": {}}
    assert missing_fields(MANIFEST, owned_fields(body(fields), "us")) == ("metadata.labels.a", "metadata.labels.b")


def test_an_object_of_another_manager_is_not_owned() -> None:
    assert missing_fields(MANIFEST, owned_fields(body(FIELDS, manager="kubectl"), "us")) != ()


def test_what_a_create_and_an_apply_own_counts_together_and_a_status_does_not() -> None:
    first, second = {"f:spec": FIELDS["f:spec"]}, {"f:metadata": FIELDS["f:metadata"]}
    both = body(first)["metadata"]["managedFields"] + body(second, operation="Update")["metadata"]["managedFields"]
    assert missing_fields(MANIFEST, owned_fields({"metadata": {"managedFields": both}}, "us")) == ()
    assert json.loads(owned_fields(body(FIELDS, subresource="status"), "us")) == {"f:metadata": {".": {}}}


def test_objects_of_the_same_shape_share_one_text() -> None:
    other = copy.deepcopy(FIELDS)
    other["f:metadata"]["f:ownerReferences"] = {'k:{"uid":"another"}': {}}
    assert owned_fields(body(FIELDS), "us") == owned_fields(body(other), "us")
