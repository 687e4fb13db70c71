"""The values: described once, with a strict schema, and generated files that are current."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import yaml
from rendered import CHARTS, DEFINITION, OPERATOR

from swarmgame_operator.plan.conditions.accepted import MIN_VERSION


def schema_of(chart: Any) -> dict[str, Any]:
    return json.loads((chart / "values.schema.json").read_text())


def objects(node: dict[str, Any], path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    if "properties" in node:
        yield path, node
        for name, inner in node["properties"].items():
            yield from objects(inner, f"{path}.{name}")


def test_the_generated_files_are_current() -> None:
    done = subprocess.run(
        [sys.executable, CHARTS / "generate.py", "--check"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("chart", [OPERATOR, DEFINITION], ids=lambda chart: chart.name)
def test_no_object_of_the_schema_takes_unknown_keys_but_a_parent_charts(chart: Any) -> None:
    open_ones = [path for path, node in objects(schema_of(chart)) if node.get("additionalProperties") is not False]
    assert set(open_ones) <= {".global"}


@pytest.mark.parametrize("chart", [OPERATOR, DEFINITION], ids=lambda chart: chart.name)
def test_the_schema_and_the_values_have_the_same_keys(chart: Any) -> None:
    def paths(node: Any, schema: dict[str, Any], path: tuple[str, ...] = ()) -> set[tuple[str, ...]]:
        if "properties" not in schema:
            return {path}
        return set().union(
            *(paths((node or {}).get(name), inner, (*path, name)) for name, inner in schema["properties"].items())
        )

    def keys_of(node: Any, schema: dict[str, Any], path: tuple[str, ...] = ()) -> set[tuple[str, ...]]:
        if "properties" not in schema:
            return {path}
        return set().union(*(keys_of(inner, schema["properties"][name], (*path, name)) for name, inner in node.items()))

    values, schema = yaml.safe_load((chart / "values.yaml").read_text()), schema_of(chart)
    optional = {("global",), ("resources", "claims")}
    assert keys_of(values, schema) == paths(values, schema) - optional


@pytest.mark.parametrize("chart", [OPERATOR, DEFINITION], ids=lambda chart: chart.name)
def test_chart_and_application_have_the_projects_version(chart: Any) -> None:
    project = (CHARTS.parent / "pyproject.toml").read_text()
    metadata = yaml.safe_load((chart / "Chart.yaml").read_text())
    assert f'version = "{metadata["version"]}"' in project
    assert metadata["appVersion"] == metadata["version"]


def test_the_oldest_kubernetes_is_the_same_wherever_it_is_named() -> None:
    constraint = yaml.safe_load((OPERATOR / "Chart.yaml").read_text())["kubeVersion"]
    assert yaml.safe_load((DEFINITION / "Chart.yaml").read_text())["kubeVersion"] == constraint
    major, minor = MIN_VERSION
    assert constraint == f">={major}.{minor}.0-0"
    for page in ("charts/swarmgame/README.head.md", "docs/guide/kubernetes.md"):
        assert f"Kubernetes {major}.{minor} or newer" in (CHARTS.parent / page).read_text()
    tested = (CHARTS.parent / "hack/kind/nodes.txt").read_text().split()
    assert any(word.startswith(f"v{major}.{minor}.") for word in tested)
