"""Metrics: of games, computed from the cache at every scrape; and of the operator's own work, counted as it happens.

A deleted game leaves no series behind, because nothing of games is kept here. `OPERATOR_METRICS` defines every metric;
`python -m swarmgame_operator.metrics [FILE]` writes docs/reference/operator-metrics.md from it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from swarmgame_common.metrics import MetricDefinition, MetricType, metrics_table
from swarmgame_operator.cache import Key
from swarmgame_operator.records import GameRecord
from swarmgame_operator.snapshot_builder import time_of

_GAME = ("namespace", "name")
_GAUGE, _COUNTER, _HISTOGRAM = MetricType.GAUGE, MetricType.COUNTER, MetricType.HISTOGRAM
OPERATOR_METRICS = (
    MetricDefinition(
        "swarmgame_info",
        _GAUGE,
        "1 for every game; joins a game's properties to its other series",
        labels=(*_GAME, "model", "coordination", "queue"),
    ),
    MetricDefinition(
        "swarmgame_condition",
        _GAUGE,
        "1 for the current status of each condition",
        high="`Ready` not True, or `Degraded` True, for long: see the condition's reason",
        labels=(*_GAME, "type", "status"),
    ),
    MetricDefinition(
        "swarmgame_peers",
        _GAUGE,
        "peers by state: desired, active, ready, registered, succeeded, failed, terminating",
        low="ready below desired for long: pods cannot start",
        labels=(*_GAME, "state"),
    ),
    MetricDefinition(
        "swarmgame_round", _GAUGE, "rounds played", low="flat while Ready: the swarm is stalled", labels=_GAME
    ),
    MetricDefinition(
        "swarmgame_max_rounds",
        _GAUGE,
        "rounds to play; with swarmgame_round, the progress of a game",
        labels=_GAME,
    ),
    MetricDefinition(
        "swarmgame_time_to_ready_seconds",
        _GAUGE,
        "seconds from the game's creation to its last becoming Ready; absent while it is not",
        high="slow images, model loading, or a queue",
        labels=_GAME,
    ),
    MetricDefinition(
        "swarmgame_operator_reconcile",
        _COUNTER,
        "reconciliations by result: done, retry, failed",
        high="retry or failed keep growing: see the next metric, and the log",
        labels=("result",),
    ),
    MetricDefinition(
        "swarmgame_operator_reconcile_errors",
        _COUNTER,
        "failed reconciliations by reason; an occasional Conflict is normal",
        high="Forbidden: the operator's role lacks a rule",
        labels=("reason",),
    ),
    MetricDefinition(
        "swarmgame_operator_reconcile_duration_seconds",
        _HISTOGRAM,
        "seconds of a reconciliation",
        high="a slow API server",
    ),
    MetricDefinition(
        "swarmgame_operator_queue_depth",
        _GAUGE,
        "games that wait to be reconciled",
        high="for long: more workers are needed, or the API server is slow",
    ),
    MetricDefinition(
        "swarmgame_operator_queue_oldest_seconds",
        _GAUGE,
        "age of the oldest game in the queue",
        high="above the stale limit the operator is restarted",
    ),
    MetricDefinition(
        "swarmgame_operator_queue_latency_seconds",
        _HISTOGRAM,
        "seconds from when a game is due until its reconciliation begins",
        high="as for the depth",
    ),
    MetricDefinition(
        "swarmgame_operator_k8s_requests",
        _COUNTER,
        "requests to the API server; create, apply, patch, update and delete are writes: none in a steady state",
        high="429: the API server is overloaded",
        labels=("verb", "code"),
    ),
    MetricDefinition(
        "swarmgame_operator_watch_last_event_timestamp_seconds",
        _GAUGE,
        "time of the API server's last message about a kind, bookmarks included",
        low="minutes ago: the watch has stalled",
        labels=("kind",),
    ),
    MetricDefinition(
        "swarmgame_operator_watch_lists",
        _GAUGE,
        "lists of a kind",
        high="growing: watches break and cannot be resumed",
        labels=("kind",),
    ),
    MetricDefinition(
        "swarmgame_operator_watch_synced",
        _GAUGE,
        "1 while the watch of a kind is in step with the API server",
        low="0 for long: a watch is broken, and nothing is written until it is in step again",
        labels=("kind",),
    ),
    MetricDefinition(
        "swarmgame_operator_unreadable_objects",
        _GAUGE,
        "objects of a kind with a game's labels that the operator skips, because it cannot read them",
        high="above 0: the log names them",
        labels=("kind",),
    ),
    MetricDefinition(
        "swarmgame_operator_leader",
        _GAUGE,
        "1 for the operator that writes",
        high="a sum over replicas above 1: the Lease is not set",
        low="a sum of 0: no operator works",
    ),
    MetricDefinition(
        "swarmgame_operator_build_info",
        _GAUGE,
        "1; the operator's version",
        low="absent: no operator runs",
        labels=("version",),
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
    head = [
        "# Metrics of the operator",
        "",
        "On `/metrics` of the metrics port. Generated by `python -m swarmgame_operator.metrics`.",
        "Peers and the gateway serve their own.",
        "",
    ]
    return "\n".join([*head, *metrics_table(OPERATOR_METRICS), ""])


if __name__ == "__main__":
    Path(sys.argv[1] if len(sys.argv) > 1 else "docs/reference/operator-metrics.md").write_text(
        reference(), encoding="utf-8"
    )
