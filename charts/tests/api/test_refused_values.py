"""Values that helm refuses, with a message that names the value and says what it may be."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from typing import Any

import pytest
from rendered import DEFINITION, OPERATOR, Refused, render

Helm = Callable[..., subprocess.CompletedProcess[str]]
pytestmark = pytest.mark.usefixtures("helm")

REFUSED = [
    ("a name that is not there", {"replicas": 2}, ["additional properties 'replicas' not allowed"]),
    (
        "a misspelt inner name",
        {"image": {"pullpolicy": "Always"}},
        ["/image", "additional properties 'pullpolicy' not allowed"],
    ),
    ("a number as text", {"replicaCount": "two"}, ["/replicaCount", "got string, want integer"]),
    ("a negative number", {"replicaCount": -1}, ["/replicaCount", "minimum", "want 0"]),
    (
        "a pull policy that is none",
        {"image": {"pullPolicy": "Sometimes"}},
        ["/image/pullPolicy", "'Always', 'IfNotPresent', 'Never'"],
    ),
    ("a digest that is none", {"image": {"digest": "sha256:abc"}}, ["/image/digest", "does not match pattern"]),
    ("a namespace in capitals", {"watchNamespaces": ["Team-A"]}, ["/watchNamespaces/0", "does not match pattern"]),
    ("a namespace twice", {"watchNamespaces": ["a", "a"]}, ["/watchNamespaces", "items at 0 and 1 are equal"]),
    (
        "an interval without a unit",
        {"metrics": {"serviceMonitor": {"interval": "30"}}},
        ["/metrics/serviceMonitor/interval", "pattern"],
    ),
    ("a log format that is none", {"operator": {"logFormat": "xml"}}, ["/operator/logFormat", "'json', 'text'"]),
    (
        "a pull secret as a mere name",
        {"imagePullSecrets": ["pull"]},
        ["/imagePullSecrets/0", "got string, want object"],
    ),
    ("a label that is a number", {"podLabels": {"tier": 1}}, ["/podLabels/tier", "want string"]),
    (
        "a port beyond all ports",
        {"networkPolicy": {"apiServerPorts": [70000]}},
        ["/networkPolicy/apiServerPorts/0", "maximum"],
    ),
]


@pytest.mark.parametrize(("values", "words"), [pytest.param(*case[1:], id=case[0]) for case in REFUSED])
def test_a_wrong_value_is_refused_by_its_path(values: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(Refused) as refused:
        render(OPERATOR, values)
    for word in words:
        assert word in str(refused.value)


def test_the_definitions_chart_refuses_what_it_does_not_know() -> None:
    with pytest.raises(Refused, match="additional properties 'retain' not allowed"):
        render(DEFINITION, {"retain": True})


def test_several_operators_without_a_lease_are_refused() -> None:
    with pytest.raises(Refused, match=r"replicaCount is 2 with leaderElection.mode never: .* set the mode to auto"):
        render(OPERATOR, {"replicaCount": 2, "leaderElection": {"mode": "never"}})


def test_a_kubernetes_that_is_too_old_is_refused(helm: Helm) -> None:
    done = helm("template", "swarmgame", OPERATOR, "--kube-version", "1.33.0", check=False)
    assert done.returncode != 0
    assert "requires kubeVersion: >=1.34.0-0 which is incompatible with Kubernetes v1.33.0" in done.stderr
