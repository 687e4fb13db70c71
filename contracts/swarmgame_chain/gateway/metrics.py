"""The gateway's Prometheus metrics, read from the gateway at each scrape.

docs/guide/chain.md explains them. Labels come from closed lists (kinds, states, the contract's errors), so a sender
cannot create series.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

if TYPE_CHECKING:
    from collections.abc import Iterator

    from prometheus_client.core import Metric

    from swarmgame_chain.gateway.service import Gateway


class _Collector:
    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway

    def collect(self) -> Iterator[Metric]:
        status, counts = self._gateway.status(), self._gateway.sender.counts
        waiting = GaugeMetricFamily(
            "swarmgame_gateway_waiting", "Messages that wait for a transaction", labels=["kind"]
        )
        for kind, count in status["waiting"].items():
            waiting.add_metric([kind], count)
        yield waiting
        ended = CounterMetricFamily(
            "swarmgame_gateway_messages",
            "Messages that are over, by how they ended",
            labels=["kind", "state", "reason"],
        )
        for (kind, state, reason), count in self._gateway.queue.ended.items():
            ended.add_metric([kind, str(state), reason], count)
        yield ended
        transactions = CounterMetricFamily(
            "swarmgame_gateway_transactions", "What happened to transactions", labels=["what"]
        )
        for what in ("sent", "bumped", "reorganised", "lost", "filled"):
            transactions.add_metric([what], getattr(counts, what))
        yield transactions
        yield CounterMetricFamily("swarmgame_gateway_gas", "Gas used by transactions that are final", value=counts.gas)
        calls = CounterMetricFamily("swarmgame_gateway_node_calls", "Calls to the node", labels=["method"])
        for method, count in self._gateway.chain.calls.items():
            calls.add_metric([method], count)
        yield calls
        yield CounterMetricFamily(
            "swarmgame_gateway_node_failures",
            "Steps that ended because the node did not answer, or not as it should",
            value=self._gateway.failures,
        )
        for name, help_, value in (
            ("in_flight", "Transactions that are not final yet", status["inFlight"]),
            ("ready", "1 when the chain answers and is the right one", int(self._gateway.ready)),
            (
                "wallet_empty",
                "1 when the wallet could not pay for the last transaction",
                int(self._gateway.sender.out_of_funds),
            ),
            ("budget_spent", "1 when the gas of this hour is used up", int(self._gateway.sender.budget_spent)),
            ("round", "The round on chain", status["round"]),
            ("round_age_seconds", "How long the round on chain has lasted", status["roundAge"]),
        ):
            yield GaugeMetricFamily(f"swarmgame_gateway_{name}", help_, value=value)


def render(gateway: Gateway) -> bytes:
    """Return all metrics as text."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Collector(gateway))
    return generate_latest(registry)
