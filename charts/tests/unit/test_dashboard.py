"""The metrics in dashboard and alerts are those that the programs export."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rendered import OPERATOR

from swarmgame.observability.metric_definitions import METRICS, PREFIX
from swarmgame_chain.gateway import metrics as gateway
from swarmgame_common.metrics import MetricType
from swarmgame_operator.metrics import OPERATOR_METRICS

DASHBOARD = json.loads((OPERATOR / "dashboards" / "swarmgame.json").read_text())
ALERTS = (OPERATOR / "templates" / "prometheusrule.yaml").read_text()
NAME = re.compile(r"\bswarmgame_[a-z0-9_]+\b")
SUFFIXES = ("_bucket", "_count", "_sum")


def panels(dashboard: dict[str, Any]) -> list[dict[str, Any]]:
    return [panel for panel in dashboard["panels"] if panel["type"] != "row"]


def expressions() -> Iterator[str]:
    for panel in panels(DASHBOARD):
        for target in panel["targets"]:
            yield target["expr"]
    for variable in DASHBOARD["templating"]["list"]:
        yield variable["query"]["query"] if isinstance(variable["query"], dict) else ""
    yield from re.findall(r"expr: (?:\|-\n)?(.*?)\n {10}for:", ALERTS, re.DOTALL)


def worker_metrics() -> set[str]:
    return {
        PREFIX + metric.name + suffix
        for metric in METRICS
        for suffix in (SUFFIXES if metric.type is MetricType.HISTOGRAM else ("",))
    }


def gateway_metrics() -> set[str]:
    status = {"waiting": {"report": 1}, "inFlight": 0, "round": 0, "roundAge": 0}
    counts = SimpleNamespace(sent=0, bumped=0, reorganised=0, lost=0, filled=0, gas=0)
    queue = SimpleNamespace(ended={("report", "final", ""): 1})
    sender = SimpleNamespace(counts=counts, out_of_funds=False, budget_spent=False)
    chain = SimpleNamespace(calls={"eth_call": 1})
    running = SimpleNamespace(status=lambda: status, sender=sender, queue=queue, chain=chain, failures=0, ready=True)
    text = gateway.render(running).decode()
    return set(re.findall(r"^(\w+)[{ ]", re.sub(r"^#.*\n", "", text, flags=re.MULTILINE), re.MULTILINE))


def operator_metrics() -> set[str]:
    endings = {"counter": ("_total",), "histogram": SUFFIXES, "gauge": ("",)}
    return {entry.name + ending for entry in OPERATOR_METRICS for ending in endings[entry.type]}


def metrics_in_use() -> set[str]:
    return {name for expression in expressions() for name in NAME.findall(expression)}


def test_the_expressions_are_found() -> None:
    assert len(metrics_in_use()) > 25


def test_the_workers_metrics_in_the_expressions_exist() -> None:
    assert {name for name in metrics_in_use() if name.startswith(PREFIX)} <= worker_metrics()


def test_the_gateways_metrics_in_the_expressions_exist() -> None:
    assert {name for name in metrics_in_use() if name.startswith("swarmgame_gateway_")} <= gateway_metrics()


def test_the_operators_metrics_in_the_expressions_exist() -> None:
    others = (PREFIX, "swarmgame_gateway_")
    assert {name for name in metrics_in_use() if not name.startswith(others)} <= operator_metrics()


def test_every_panel_has_a_title_a_position_and_a_description() -> None:
    assert len(panels(DASHBOARD)) >= 20
    for panel in panels(DASHBOARD):
        assert panel["title"]
        assert panel["description"], panel["title"]
        assert panel["targets"], panel["title"]
    places = [(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in DASHBOARD["panels"]]
    assert len(places) == len(set(places))
    identities = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(identities) == len(set(identities))


def test_every_panel_uses_the_chosen_data_source() -> None:
    for panel in panels(DASHBOARD):
        assert panel["datasource"]["uid"] == "${datasource}"


@pytest.mark.parametrize("path", [OPERATOR / "dashboards" / "swarmgame.json"], ids=lambda path: path.name)
def test_the_file_fits_a_config_map(path: Path) -> None:
    assert path.stat().st_size < 512 * 1024
