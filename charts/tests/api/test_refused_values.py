"""Values that helm refuses, with a message that has the value's path and what is allowed."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from typing import Any

import pytest
from rendered import OPERATOR, Refused, render

Helm = Callable[..., subprocess.CompletedProcess[str]]
pytestmark = pytest.mark.usefixtures("helm")

REFUSED = [
    (
        "a misspelt name",
        {"image": {"pullpolicy": "Always"}},
        ["/image", "additional properties 'pullpolicy' not allowed"],
    ),
    ("a wrong type", {"replicaCount": "two"}, ["/replicaCount", "got string, want integer"]),
    ("a number out of range", {"replicaCount": -1}, ["/replicaCount", "minimum", "want 0"]),
    ("a wrong choice", {"image": {"pullPolicy": "No"}}, ["/image/pullPolicy", "'Always', 'IfNotPresent', 'Never'"]),
    ("a wrong pattern", {"image": {"digest": "sha256:abc"}}, ["/image/digest", "does not match pattern"]),
    ("an item twice", {"watchNamespaces": ["a", "a"]}, ["/watchNamespaces", "items at 0 and 1 are equal"]),
]
"""One value for each kind of constraint in the schema."""


@pytest.mark.parametrize(("values", "texts"), [pytest.param(*case[1:], id=case[0]) for case in REFUSED])
def test_a_wrong_value_is_refused_with_its_path(values: dict[str, Any], texts: list[str]) -> None:
    with pytest.raises(Refused) as refused:
        render(OPERATOR, values)
    for text in texts:
        assert text in str(refused.value)


def test_several_operators_without_a_lease_are_refused() -> None:
    with pytest.raises(Refused, match=r"replicaCount is 2 with leaderElection.mode never: .* set the mode to auto"):
        render(OPERATOR, {"replicaCount": 2, "leaderElection": {"mode": "never"}})


def test_a_kubernetes_that_is_too_old_is_refused(helm: Helm) -> None:
    done = helm("template", "swarmgame", OPERATOR, "--kube-version", "1.33.0", check=False)
    assert done.returncode != 0
    assert "requires kubeVersion: >=1.34.0-0 which is incompatible with Kubernetes v1.33.0" in done.stderr
