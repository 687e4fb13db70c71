"""Metric definitions: what a metric of Prometheus is called, what it is, and what a high or a low value means.

A program lists its metrics once; `make_collectors` creates the collectors of prometheus_client from that list, and
`metrics_table` the reference page. Nothing is measured here.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
"""Of the answer of `/metrics`."""
TABLE_HEAD = ("| metric | type | what it is | when it is high | when it is low |", "|---|---|---|---|---|")


class MetricType(StrEnum):
    """The type of a metric, as Prometheus names it."""

    GAUGE = "gauge"
    COUNTER = "counter"
    HISTOGRAM = "histogram"


@dataclass(frozen=True, slots=True)
class MetricDefinition:
    """One metric.

    Args:
        name: without the program's prefix.
        type: gauge, counter or histogram.
        description: what it is, with its unit.
        high, low: what a high or a low value means; — where that means nothing.
        labels: names of its labels.
    """

    name: str
    type: MetricType
    description: str
    high: str = "—"
    low: str = "—"
    labels: tuple[str, ...] = ()

    def exposed_name(self, prefix: str = "") -> str:
        """Return the name that Prometheus shows: a counter's ends in `_total`."""
        ending = "_total" if self.type is MetricType.COUNTER and not self.name.endswith("_total") else ""
        return prefix + self.name + ending


def make_collectors(
    definitions: Iterable[MetricDefinition],
    registry: CollectorRegistry,
    *,
    prefix: str = "",
    buckets: Sequence[float] | None = None,
) -> dict[str, Any]:
    """Return a collector for each definition, by its name.

    Args:
        buckets: of histograms; None: those of prometheus_client.
    """
    from prometheus_client import Counter, Gauge, Histogram

    classes: dict[MetricType, Any] = {
        MetricType.GAUGE: Gauge,
        MetricType.COUNTER: Counter,
        MetricType.HISTOGRAM: Histogram,
    }
    made = {}
    for definition in definitions:
        options = {"buckets": buckets} if definition.type is MetricType.HISTOGRAM and buckets is not None else {}
        made[definition.name] = classes[definition.type](
            prefix + definition.name, definition.description, definition.labels, registry=registry, **options
        )
    return made


def metrics_table(definitions: Iterable[MetricDefinition], prefix: str = "") -> list[str]:
    """Return the definitions as a Markdown table, a line each."""
    rows = list(TABLE_HEAD)
    for each in definitions:
        labels = "{" + ",".join(each.labels) + "}" if each.labels else ""
        rows.append(
            f"| `{each.exposed_name(prefix)}{labels}` | {each.type} | {each.description} | {each.high} | {each.low} |"
        )
    return rows
