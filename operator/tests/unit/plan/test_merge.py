"""Merging a podTemplate into a pod, by name."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from swarmgame_operator.plan.merge import merge

POD: dict[str, Any] = {
    "restartPolicy": "Never",
    "containers": [
        {"name": "peer", "args": ["pod", "peer"], "env": [{"name": "A", "value": "1"}, {"name": "B", "value": "2"}]}
    ],
    "volumes": [{"name": "tmp", "emptyDir": {}}, {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": "8Gi"}}],
}

TABLE: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    ("nothing changes nothing", {}, {}),
    ("a field is added", {"hostname": "x"}, {"hostname": "x"}),
    ("a field is replaced", {"restartPolicy": "Always"}, {"restartPolicy": "Always"}),
    ("a null removes", {"restartPolicy": None}, {"restartPolicy": ...}),
    ("a mapping is merged", {"nodeSelector": {"a": "b"}}, {"nodeSelector": {"a": "b"}}),
    (
        "a container is found by its name, and its variables by theirs",
        {"containers": [{"name": "peer", "env": [{"name": "B", "value": "3"}, {"name": "C", "value": "4"}]}]},
        {
            "containers": [
                {
                    "name": "peer",
                    "args": ["pod", "peer"],
                    "env": [{"name": "A", "value": "1"}, {"name": "B", "value": "3"}, {"name": "C", "value": "4"}],
                }
            ]
        },
    ),
    (
        "a container of another name stands beside ours",
        {"containers": [{"name": "side", "image": "s"}]},
        {"containers": [*POD["containers"], {"name": "side", "image": "s"}]},
    ),
    (
        "a list without names is replaced as a whole",
        {"containers": [{"name": "peer", "args": ["other"]}]},
        {"containers": [{**POD["containers"][0], "args": ["other"]}]},
    ),
    (
        "a volume of another kind takes the place of ours",
        {"volumes": [{"name": "tmp", "persistentVolumeClaim": {"claimName": "c"}}]},
        {"volumes": [{"name": "tmp", "persistentVolumeClaim": {"claimName": "c"}}, POD["volumes"][1]]},
    ),
    (
        "a volume of the same kind is merged",
        {"volumes": [{"name": "shm", "emptyDir": {"sizeLimit": "1Gi"}}]},
        {"volumes": [POD["volumes"][0], {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": "1Gi"}}]},
    ),
    (
        "a variable from elsewhere takes the place of a value",
        {"containers": [{"name": "peer", "env": [{"name": "A", "valueFrom": {"fieldRef": {"fieldPath": "x"}}}]}]},
        {
            "containers": [
                {
                    **POD["containers"][0],
                    "env": [{"name": "A", "valueFrom": {"fieldRef": {"fieldPath": "x"}}}, {"name": "B", "value": "2"}],
                }
            ]
        },
    ),
    (
        "a list that ours has not is taken",
        {"tolerations": [{"operator": "Exists"}]},
        {"tolerations": [{"operator": "Exists"}]},
    ),
    (
        "an entry without a name is added",
        {"volumes": [{"emptyDir": {}}]},
        {"volumes": [*POD["volumes"], {"emptyDir": {}}]},
    ),
    ("what is no list of mappings is taken too", {"volumes": ["odd"]}, {"volumes": [*POD["volumes"], "odd"]}),
]


@pytest.mark.parametrize(
    ("patch", "changes"), [(patch, changes) for _, patch, changes in TABLE], ids=[name for name, _, _ in TABLE]
)
def test_a_template_is_laid_over_the_pod(patch: dict[str, Any], changes: dict[str, Any]) -> None:
    expected = {key: value for key, value in {**POD, **changes}.items() if value is not ...}
    assert merge(POD, patch) == expected


@pytest.mark.parametrize("patch", [patch for _, patch, _ in TABLE])
def test_a_merge_changes_neither_of_its_arguments(patch: dict[str, Any]) -> None:
    base, given_patch = copy.deepcopy(POD), copy.deepcopy(patch)
    merge(base, given_patch)
    assert (base, given_patch) == (POD, patch)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["name", "env", "volumes", "containers", "a"]), inner, max_size=3)
    ),
    max_leaves=10,
)


@settings(deadline=None)
@given(st.dictionaries(st.sampled_from(["containers", "volumes", "env", "a"]), JSON, max_size=4))
def test_whatever_an_author_writes_is_merged_without_an_error(patch: dict[str, Any]) -> None:
    merged = merge(POD, patch)
    assert set(merged) >= {key for key, value in patch.items() if value is not None}
