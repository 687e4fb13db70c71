"""Metrics of a peer: the collectors that Prometheus reads, and the observer that updates them.

`swarmgame.observability.metric_definitions` says what each metric means. The log of rounds is `metrics.jsonl`, not
this. Invariant: the number of label values is bounded, whatever remote peers send.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

from prometheus_client import CollectorRegistry, generate_latest

from swarmgame.game.evaluation import Evaluation
from swarmgame.game.protocol import ClosedBy, Collected
from swarmgame.game.report import Observer, RoundReport, SkipCause
from swarmgame.game.state import GameState, Rewards, Round
from swarmgame.observability.metric_definitions import METRICS, PREFIX
from swarmgame.observability.status import first_of
from swarmgame.swarm.counted_peers import Standing
from swarmgame_common.metrics import make_collectors

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0)
ENGINE_METRICS = frozenset(
    metric.name.removesuffix("_total") for metric in METRICS if metric.name.startswith("engine_")
)
"""What a trainer reports about its generation server, since the last round (`Sampler.metrics`)."""
MAX_LABEL_VALUES = 64
"""Values beyond these are counted under `other`. A game's author chooses them; remote peers choose none."""


class PeerMetrics:
    """The collectors of one peer, in a registry of its own, so that two peers of one process stay apart."""

    def __init__(self, *, peer: str = "", index: int = 0, version: str = "") -> None:
        self.registry = CollectorRegistry()
        self._collectors = make_collectors(METRICS, self.registry, prefix=PREFIX, buckets=SECONDS)
        self._labels: dict[str, set[str]] = {}
        self._seen: dict[str, int] = {}
        self["info"].labels(peer, str(index), version).set(1)

    def __getitem__(self, name: str) -> Any:
        """Return the collector with this name (no prefix)."""
        return self._collectors[name]

    def labelled(self, name: str, value: str) -> Any:
        """Return the child of a one-label metric; values past the bound share the child `other`."""
        values = self._labels.setdefault(name, set())
        if value not in values and len(values) >= MAX_LABEL_VALUES:
            value = "other"
        values.add(value)
        return self._collectors[name].labels(value)

    def running_total(self, key: str, total: int) -> int:
        """Return how much a running total grew since the last call. A total that fell has started again from 0."""
        before = self._seen.get(key, 0)
        self._seen[key] = total
        return total - before if total >= before else total

    def chain(self, *, waiting: int, final: int, rejected: int, dropped: int) -> None:
        """Set the number of messages to the chain by state."""
        for state, count in (("waiting", waiting), ("final", final), ("rejected", rejected), ("dropped", dropped)):
            self["chain_messages"].labels(state).set(count)

    def render(self) -> bytes:
        """Return the text of `/metrics`."""
        return generate_latest(self.registry)


class MetricsObserver(Observer):
    """Updates `PeerMetrics` from the loop."""

    def __init__(self, metrics: PeerMetrics, *, clock: Callable[[], float] = time.time) -> None:
        self._metrics = metrics
        self._clock = clock

    def rounds_skipped(self, first: int, count: int, cause: SkipCause) -> None:
        self._metrics["rounds_skipped_total"].labels(str(cause)).inc(count)

    def round_started(self, round: Round) -> None:
        self._metrics["round"].set(round.number)

    def stage_closed(self, round: Round, stage: int, collected: Collected) -> None:
        metrics = self._metrics
        metrics["exchange_seconds"].observe(collected.seconds)
        metrics["peers_connected"].set(len(collected.members))
        standings = Counter(map(str, collected.standings.values()))
        for standing in Standing:
            metrics["members_by_standing"].labels(str(standing)).set(standings[str(standing)])
        metrics["alone"].set(collected.closed_by is ClosedBy.ISOLATED)
        if collected.clock_error is not None:
            metrics["clock_error_seconds"].set(collected.clock_error.seconds)
        metrics["missing_total"].inc(len(collected.missing))
        metrics["stages_closed_total"].labels(str(collected.closed_by)).inc()

    def round_finished(self, report: RoundReport, state: GameState, rewards: Rewards) -> None:
        metrics = self._metrics
        metrics["rounds_total"].inc()
        metrics["tokens_total"].inc(report.tokens)
        metrics["policy_version"].set(report.policy_version)
        metrics["reward"].set(report.reward)
        metrics["external_groups_total"].inc(sum(report.external.values()))
        metrics["exchange_bytes_total"].labels("sent").inc(report.bytes_sent)
        metrics["exchange_bytes_total"].labels("received").inc(report.bytes_received)
        metrics["last_round_timestamp_seconds"].set(self._clock())
        for environment, reward in report.environments.items():
            metrics.labelled("environment_reward", environment).set(reward)
        for outcome, count in report.outcomes.items():
            metrics.labelled("contributions_total", outcome).inc(count)
        for stage, reward in enumerate(report.stage_rewards):
            metrics.labelled("stage_reward", str(stage)).set(reward)
        if report.rollouts:
            metrics["completion_length"].set(report.tokens / report.rollouts)
            metrics["truncated_share"].set(report.truncated_share)
            metrics["zero_advantage_share"].set(report.zero_advantage_share)
        if not math.isnan(report.turns):
            metrics["turns"].set(report.turns)
        for evaluation in (report.first_evaluation, report.evaluation):
            if evaluation is not None:
                self._evaluation(evaluation)
        self._seconds(report.seconds)
        self._counters(report.counters)
        self._trainer(report.metrics)

    def _evaluation(self, evaluation: Evaluation) -> None:
        several = evaluation.sampled or evaluation
        for name, values in (
            ("evaluation_average", evaluation.average),
            ("evaluation_error", evaluation.errors),
            ("evaluation_passed", evaluation.passed),
            ("evaluation_stage", {str(stage): value for stage, value in enumerate(evaluation.stages)}),
            ("evaluation_pass_at", several.pass_at),
        ):
            for label, value in values.items():
                self._metrics.labelled(name, label).set(value)

    def _seconds(self, seconds: Mapping[str, float]) -> None:
        for part, spent in seconds.items():
            if part == "round":
                self._metrics["round_seconds"].observe(spent)
            else:
                self._metrics.labelled("stage_seconds", part).set(spent)

    def _counters(self, counters: Mapping[str, int]) -> None:
        for name, total in counters.items():
            grown = self._metrics.running_total(name, total)
            if "breach" in name:
                self._metrics["scoring_breaches_total"].inc(grown)
            else:
                self._metrics.labelled("scoring_total", name).inc(grown)

    def _trainer(self, reported: Mapping[str, float]) -> None:
        for name, value in (
            ("entropy", entropy_of(reported)),
            ("kl", kl_of(reported)),
            ("clip_ratio", clip_ratio_of(reported)),
        ):
            if value is not None:
                self._metrics[name].set(value)
        for name, value in reported.items():
            if name in ENGINE_METRICS:
                self._metrics[f"{name}_total"].inc(value)
            elif name not in {"entropy", "kl", "clip_ratio"}:
                self._metrics.labelled("trainer", name).set(value)


def entropy_of(reported: Mapping[str, float]) -> float | None:
    """Return the policy's entropy from a trainer's report."""
    return first_of(reported, "entropy")


def kl_of(reported: Mapping[str, float]) -> float | None:
    """Return the KL divergence from the reference policy from a trainer's report."""
    return first_of(reported, "kl", "kl_reference")


def clip_ratio_of(reported: Mapping[str, float]) -> float | None:
    """Return the share of clipped tokens: as reported, or the sum of the low and the high side."""
    both = first_of(reported, "clip_ratio", "clip_share", "clip_fraction")
    if both is not None:
        return both
    low = first_of(reported, "clip_low", "clip_ratio_low", "clip_share_low")
    high = first_of(reported, "clip_high", "clip_ratio_high", "clip_share_high")
    return None if low is None and high is None else (low or 0.0) + (high or 0.0)
