"""Metrics: of games, computed from the cache at every scrape; and of the operator's own work, counted as it happens.

A deleted game leaves no series behind, because nothing of games is kept here. `OPERATOR_METRICS` defines every metric;
`python -m swarmgame_operator.metrics [FILE]` writes docs/reference/operator-metrics.md from it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from swarmgame_operator.cache import GameRecord, Key
from swarmgame_operator.snapshot_builder import time_of


class OperatorMetric(NamedTuple):
    """The definition of a metric: what it is, and what its value means."""

    name: str
    kind: str
    labels: tuple[str, ...]
    description: str
    meaning: str


_GAME = ("namespace", "name")
OPERATOR_METRICS = (
    OperatorMetric(
        "swarmgame_info",
        "gauge",
        (*_GAME, "model", "coordination", "queue"),
        "1 for every game",
        "joins a game's properties to its other series",
    ),
    OperatorMetric(
        "swarmgame_condition",
        "gauge",
        (*_GAME, "type", "status"),
        "1 for the current status of each condition",
        "`Ready` not True, or `Degraded` True, for long: see the condition's reason",
    ),
    OperatorMetric(
        "swarmgame_peers",
        "gauge",
        (*_GAME, "state"),
        "Peers by state: desired, active, ready, registered, succeeded, failed, terminating",
        "ready below desired for long: pods cannot start",
    ),
    OperatorMetric("swarmgame_round", "gauge", _GAME, "Rounds played", "flat while Ready: the swarm is stalled"),
    OperatorMetric(
        "swarmgame_max_rounds", "gauge", _GAME, "Rounds to play", "with swarmgame_round, the progress of a game"
    ),
    OperatorMetric(
        "swarmgame_time_to_ready_seconds",
        "gauge",
        _GAME,
        "From the game's creation to its last becoming Ready; absent while it is not",
        "high: slow images, model loading, or a queue",
    ),
    OperatorMetric(
        "swarmgame_operator_reconcile",
        "counter",
        ("result",),
        "Reconciliations by result: done, retry, failed",
        "retry or failed keep growing: see the next metric, and the log",
    ),
    OperatorMetric(
        "swarmgame_operator_reconcile_errors",
        "counter",
        ("reason",),
        "Failed reconciliations by reason",
        "Forbidden: the operator's role lacks a rule; an occasional Conflict is normal",
    ),
    OperatorMetric(
        "swarmgame_operator_reconcile_duration_seconds",
        "histogram",
        (),
        "Duration of a reconciliation",
        "high: a slow API server",
    ),
    OperatorMetric(
        "swarmgame_operator_queue_depth",
        "gauge",
        (),
        "Games that wait to be reconciled",
        "high for long: more workers, or a slow API server",
    ),
    OperatorMetric(
        "swarmgame_operator_queue_oldest_seconds",
        "gauge",
        (),
        "Age of the oldest game in the queue",
        "above the stale limit: the operator is restarted",
    ),
    OperatorMetric(
        "swarmgame_operator_queue_latency_seconds",
        "histogram",
        (),
        "Wait of a game from when it is due until its reconciliation begins",
        "high: as for the depth",
    ),
    OperatorMetric(
        "swarmgame_operator_k8s_requests",
        "counter",
        ("verb", "code"),
        "Requests to the API server",
        "create, apply, patch, update, delete are writes: none in a steady state; 429: the API server is overloaded",
    ),
    OperatorMetric(
        "swarmgame_operator_watch_last_event_timestamp_seconds",
        "gauge",
        ("kind",),
        "Time of the API server's last message about a kind, bookmarks included",
        "minutes ago: the watch has stalled",
    ),
    OperatorMetric(
        "swarmgame_operator_watch_lists",
        "gauge",
        ("kind",),
        "Lists of a kind",
        "growing: watches break and cannot be resumed",
    ),
    OperatorMetric(
        "swarmgame_operator_leader",
        "gauge",
        (),
        "1 for the operator that writes",
        "sum over replicas other than 1: no operator works, or the Lease is not set",
    ),
    OperatorMetric(
        "swarmgame_operator_build_info", "gauge", ("version",), "1; the operator's version", "absent: no operator runs"
    ),
)
_BY_NAME = {entry.name: entry for entry in OPERATOR_METRICS}
WRITES = frozenset({"create", "apply", "patch", "update", "delete"})


class OperatorMetrics:
    """The metrics of the operator's own work."""

    def __init__(self, version: str) -> None:
        self.registry = CollectorRegistry()
        self.reconciles = Counter(*_named("swarmgame_operator_reconcile"), registry=self.registry)
        self.errors = Counter(*_named("swarmgame_operator_reconcile_errors"), registry=self.registry)
        self.duration = Histogram(*_named("swarmgame_operator_reconcile_duration_seconds"), registry=self.registry)
        self.latency = Histogram(*_named("swarmgame_operator_queue_latency_seconds"), registry=self.registry)
        self.requests = Counter(*_named("swarmgame_operator_k8s_requests"), registry=self.registry)
        Gauge(*_named("swarmgame_operator_build_info"), registry=self.registry).labels(version).set(1)

    def requested(self, verb: str, code: str) -> None:
        self.requests.labels(verb, code).inc()

    @property
    def writes(self) -> int:
        """The number of requests that may have written something."""
        samples = [
            sample for metric in self.requests.collect() for sample in metric.samples if sample.name.endswith("_total")
        ]
        return int(sum(sample.value for sample in samples if sample.labels["verb"] in WRITES))


class GameCollector(Collector):
    """Collects the series of games, and gauges of the operator's components.

    Args:
        games: returns all games.
        gauges: returns metrics with their labels' values and their value.
    """

    def __init__(
        self,
        games: Callable[[], Iterable[tuple[Key, GameRecord]]],
        gauges: Callable[[], Iterable[tuple[str, tuple[str, ...], float]]],
    ) -> None:
        self._games, self._gauges = games, gauges

    def collect(self) -> Iterator[Metric]:
        families: dict[str, GaugeMetricFamily] = {}

        def add(name: str, labels: tuple[str, ...], value: float) -> None:
            if name not in families:
                entry = _BY_NAME[name]
                families[name] = GaugeMetricFamily(entry.name, entry.description, labels=entry.labels)
            families[name].add_metric(labels, value)

        for name, labels, value in self._gauges():
            add(name, labels, value)
        for key, record in self._games():
            for name, labels, value in game_series(record.body):
                add(name, (*key, *labels), value)
        yield from families.values()

    def describe(self) -> Iterable[Metric]:
        return ()


def game_series(body: dict[str, Any]) -> Iterator[tuple[str, tuple[str, ...], float]]:
    """Return the series of one game: name, labels after namespace and name, value. Missing values are left out."""
    spec, status, labels = body.get("spec") or {}, body.get("status") or {}, body["metadata"].get("labels") or {}
    model, mode = (spec.get("model") or {}).get("uri", ""), (spec.get("coordination") or {}).get("mode", "None")
    yield "swarmgame_info", (str(model)[:253], str(mode), str(labels.get("kueue.x-k8s.io/queue-name", ""))), 1.0
    for condition in status.get("conditions") or ():
        yield "swarmgame_condition", (condition["type"], condition["status"]), 1.0
        if condition["type"] == "Ready" and condition["status"] == "True":
            created, ready = (
                time_of(body["metadata"].get("creationTimestamp")),
                time_of(condition.get("lastTransitionTime")),
            )
            if isinstance(created, datetime) and isinstance(ready, datetime):
                yield "swarmgame_time_to_ready_seconds", (), max(0.0, (ready - created).total_seconds())
    for state, count in (status.get("peers") or {}).items():
        yield "swarmgame_peers", (state,), float(count)
    progress = status.get("progress") or {}
    if "round" in progress:
        yield "swarmgame_round", (), float(progress["round"])
        yield "swarmgame_max_rounds", (), float(progress.get("maxRounds", 0))


def _named(name: str) -> tuple[str, str, tuple[str, ...]]:
    entry = _BY_NAME[name]
    return entry.name, entry.description, entry.labels


def reference() -> str:
    """Return the page of all metrics, as Markdown."""
    rows = []
    for entry in OPERATOR_METRICS:
        shown = f"{entry.name}_total" if entry.kind == "counter" else entry.name
        labels = ", ".join(f"`{label}`" for label in entry.labels)
        rows.append(f"| `{shown}` | {entry.kind} | {labels} | {entry.description}. | {entry.meaning}. |")
    return "\n".join(
        [
            "# Metrics of the operator",
            "",
            "On `/metrics` of the metrics port. Generated by `python -m swarmgame_operator.metrics`. "
            "Peers and the gateway serve their own.",
            "",
            "| metric | kind | labels | what it is | what it means |",
            "|---|---|---|---|---|",
            *rows,
            "",
        ]
    )


if __name__ == "__main__":
    Path(sys.argv[1] if len(sys.argv) > 1 else "docs/reference/operator-metrics.md").write_text(
        reference(), encoding="utf-8"
    )
