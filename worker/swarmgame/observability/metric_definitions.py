"""The catalogue of metrics: every metric of a peer, what it is, and what it means when it is high or low.

`METRICS` is the single list: the collectors of `swarmgame.observability.metrics` are made from it, and
`docs/reference/metrics.md` is written from it (`python -m swarmgame.observability.metric_definitions`). Nothing is
measured here. Invariant: no metric without a meaning.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

PREFIX = "swarmgame_worker_"


class MetricType(StrEnum):
    """What Prometheus calls the type of a metric."""

    GAUGE = "gauge"
    COUNTER = "counter"
    HISTOGRAM = "histogram"


@dataclass(frozen=True, slots=True)
class MetricDefinition:
    """One metric, by its name without the prefix.

    Args:
        kind: gauge, counter or histogram. Counters end in `_total`.
        labels: names of its labels.
        what: what it is, with its unit.
        high, low: what it means when it is high, or low.
    """

    name: str
    kind: MetricType
    what: str
    high: str
    low: str
    labels: tuple[str, ...] = ()


METRICS = (
    MetricDefinition(
        "info",
        MetricType.GAUGE,
        "Always 1; the labels name the peer and its version.",
        "—",
        "—",
        ("peer", "index", "version"),
    ),
    MetricDefinition(
        "round",
        MetricType.GAUGE,
        "The round in progress, counted from 0.",
        "The game is near its end.",
        "It has just begun; a value that stands still is a stalled peer.",
    ),
    MetricDefinition(
        "rounds_total",
        MetricType.COUNTER,
        "Rounds that this process has finished.",
        "—",
        "Compare its rate between peers: the slow one holds up the quorum.",
    ),
    MetricDefinition(
        "round_seconds",
        MetricType.HISTOGRAM,
        "Wall time of a whole round.",
        "See `stage_seconds` for the part that takes it.",
        "Rounds may be too small to be worth an exchange.",
    ),
    MetricDefinition(
        "stage_seconds",
        MetricType.GAUGE,
        "Wall time of the last round by part: data, generate, exchange, listen, rewards, train, evaluate, checkpoint.",
        "The part to make faster.",
        "The part that costs nothing.",
        ("part",),
    ),
    MetricDefinition(
        "exchange_seconds",
        MetricType.HISTOGRAM,
        "Time that a stage waited for the swarm, from asking to closing.",
        "Near the stage deadline: members are slow, away, or unreachable; see `missing_total`.",
        "The others had spoken before we asked: we are the slow one.",
    ),
    MetricDefinition(
        "exchange_bytes_total",
        MetricType.COUNTER,
        "Bytes sent to and received from the swarm.",
        "Many or long rollouts are shared.",
        "Nothing is shared, or nobody is reached.",
        ("direction",),
    ),
    MetricDefinition(
        "tokens_total",
        MetricType.COUNTER,
        "Token ids that this peer sampled; its rate is the generation throughput.",
        "Generation is fast, or answers are long.",
        "Generation is slow, or answers are short.",
    ),
    MetricDefinition(
        "reward",
        MetricType.GAUGE,
        "Mean reward of our own rollouts in the last round.",
        "The policy solves what it is asked.",
        "It does not; flat for long: nothing is learnt.",
    ),
    MetricDefinition(
        "environment_reward",
        MetricType.GAUGE,
        "The same, by environment.",
        "This environment is solved: give it less weight, or make it harder.",
        "This environment is too hard, or is asked too seldom.",
        ("environment",),
    ),
    MetricDefinition(
        "evaluation_average",
        MetricType.GAUGE,
        "Mean reward on held-out questions (avg@k); `all` is over all environments.",
        "What was learnt generalises.",
        "With a high `reward`: it learnt its training questions by heart.",
        ("environment",),
    ),
    MetricDefinition(
        "evaluation_passed",
        MetricType.GAUGE,
        "Share of held-out questions with at least one right rollout (pass@k).",
        "There is something to reinforce.",
        "The policy cannot find a right answer even by chance.",
        ("environment",),
    ),
    MetricDefinition(
        "entropy",
        MetricType.GAUGE,
        "Mean entropy of the policy over the tokens trained on, in nats.",
        "The policy explores, or has learnt nothing yet.",
        "It has settled; near 0 while the reward is low: it has collapsed.",
    ),
    MetricDefinition(
        "kl",
        MetricType.GAUGE,
        "Mean KL divergence from the reference policy, in nats; absent without one.",
        "The policy has gone far from where it began.",
        "It has hardly moved.",
    ),
    MetricDefinition(
        "clip_ratio",
        MetricType.GAUGE,
        "Share of tokens whose probability ratio was clipped.",
        "Steps are too long, or external groups too stale.",
        "The trust region does not bind.",
    ),
    MetricDefinition(
        "trainer",
        MetricType.GAUGE,
        "Every other number that the trainer reported for the last round, by its name.",
        "See the trainer's documentation.",
        "See the trainer's documentation.",
        ("name",),
    ),
    MetricDefinition(
        "engine_requests_total",
        MetricType.COUNTER,
        "Prompts sent to a generation server, repeated ones included; 0 without one (`trainer.with.sampler`).",
        "Many questions a round, or many retries.",
        "Nothing is generated.",
    ),
    MetricDefinition(
        "engine_retries_total",
        MetricType.COUNTER,
        "Times that completions or weights were tried again: the server was away, too slow, or had other weights.",
        "The server is restarted or overloaded: see its log, and `timeoutSeconds`.",
        "As it should be.",
    ),
    MetricDefinition(
        "engine_stale_total",
        MetricType.COUNTER,
        "Times that the server did not have the policy's weights; what it generated with others was thrown away.",
        "The server is restarted, or another peer uses it too.",
        "As it should be.",
    ),
    MetricDefinition(
        "engine_seconds_total",
        MetricType.COUNTER,
        "Time waited for completions, weights that had to be pushed first included.",
        "The server is what a round waits for: give it more memory, or another GPU.",
        "—",
    ),
    MetricDefinition(
        "engine_pushes_total",
        MetricType.COUNTER,
        "Versions of the policy loaded into the server.",
        "Above the updates: the server lost its weights.",
        "Below the updates: the policy does not move.",
    ),
    MetricDefinition(
        "engine_push_seconds_total",
        MetricType.COUNTER,
        "Time that saving and loading them took.",
        "All weights go through files: train adapters, or put the folder into memory.",
        "—",
    ),
    MetricDefinition(
        "policy_version",
        MetricType.GAUGE,
        "Updates that the policy has seen.",
        "—",
        "Behind the rounds: rounds without an update, because no group had a spread of rewards.",
    ),
    MetricDefinition(
        "external_groups_total",
        MetricType.COUNTER,
        "Groups of other peers that were trained on.",
        "This peer learns much from others.",
        "Nothing useful is offered, or sharing is off.",
    ),
    MetricDefinition(
        "peers_connected",
        MetricType.GAUGE,
        "Live members of the swarm, ourselves included, when the last stage closed.",
        "—",
        "Below what was asked: peers are away; 1 is a swarm of one, see `alone`.",
    ),
    MetricDefinition(
        "alone",
        MetricType.GAUGE,
        "1 while nobody else is in the swarm, else 0.",
        "This peer trains by itself: see whether it can reach its initial peers.",
        "As it should be.",
    ),
    MetricDefinition(
        "missing_total",
        MetricType.COUNTER,
        "Members that had not spoken when a stage closed, added up.",
        "Peers are too slow for the deadline or the quorum.",
        "Everyone speaks in time.",
    ),
    MetricDefinition(
        "stages_closed_total",
        MetricType.COUNTER,
        "Stages by why they closed: quorum, deadline, alone, behind.",
        "`deadline`: rounds take as long as the deadline allows. `behind`: this peer is too slow for the others.",
        "`quorum` low: members do not answer in time.",
        ("by",),
    ),
    MetricDefinition(
        "contributions_total",
        MetricType.COUNTER,
        "Messages of others by what became of them: accepted, late, duplicate, bad-signature, bad-hash, too-large, malformed, stale, …",
        "Anything but accepted: somebody is slow, misconfigured or hostile.",
        "`accepted` low: nobody is heard.",
        ("outcome",),
    ),
    MetricDefinition(
        "scoring_breaches_total",
        MetricType.COUNTER,
        "Answers that broke a limit of the scoring sandbox; each scored 0.",
        "Somebody, perhaps our own policy, writes programs as answers.",
        "As it should be.",
    ),
    MetricDefinition(
        "scoring_total",
        MetricType.COUNTER,
        "What else the rewards counted, by name (scorer exceptions, time-outs, …).",
        "The scorer and the answers do not fit each other.",
        "As it should be.",
        ("event",),
    ),
    MetricDefinition(
        "checkpoint_seconds",
        MetricType.HISTOGRAM,
        "Time that a checkpoint took.",
        "The disk is slow: checkpoint less often.",
        "—",
    ),
    MetricDefinition(
        "last_round_timestamp_seconds",
        MetricType.GAUGE,
        "Unix time at which the last round finished.",
        "—",
        "Far behind the clock: the peer is stalled.",
    ),
    MetricDefinition(
        "chain_messages",
        MetricType.GAUGE,
        "What we said to the chain, by what became of it: waiting, final, rejected, dropped; absent without a chain.",
        "`waiting`: the chain or its gateway is away, see `chain.problem` in `/status`. `rejected`: see `chain.rejected` there.",
        "`final` low: rounds are played and the chain does not hear of them.",
        ("state",),
    ),
)

BOOTNODE_PREFIX = "swarmgame_bootnode_"
BOOTNODE = (
    MetricDefinition(
        "members",
        MetricType.GAUGE,
        "Heartbeats that lie with this bootnode.",
        "—",
        "0 long after its start: the members do not find it, so that newcomers who ask it play alone.",
    ),
    MetricDefinition(
        "bytes_sent",
        MetricType.GAUGE,
        "Bytes sent since the start.",
        "Many newcomers, or a stranger who asks a lot.",
        "—",
    ),
    MetricDefinition("bytes_received", MetricType.GAUGE, "Bytes received since the start.", "As above.", "—"),
    MetricDefinition("messages_sent", MetricType.GAUGE, "Messages sent since the start.", "As above.", "—"),
    MetricDefinition("messages_received", MetricType.GAUGE, "Messages received since the start.", "As above.", "—"),
)
"""What a bootnode shows instead."""


def reference() -> str:
    """The text of `docs/reference/metrics.md`."""
    lines = [
        "# Metrics of a peer",
        "",
        "Every peer serves these on `/metrics`, beside `/healthz`, `/readyz` and `/status`. The file is written from "
        "`swarmgame.observability.metric_definitions.METRICS`:",
        "`python -m swarmgame.observability.metric_definitions > docs/reference/metrics.md`. Histograms also have `_bucket`, `_count` and `_sum`.",
        "",
        "| metric | kind | what it is | when it is high | when it is low |",
        "|---|---|---|---|---|",
    ]
    lines += [_row(PREFIX, metric) for metric in METRICS]
    lines += [
        "",
        "A bootnode serves these instead:",
        "",
        *lines[5:7],
        *(_row(BOOTNODE_PREFIX, metric) for metric in BOOTNODE),
    ]
    return "\n".join(lines) + "\n"


def _row(prefix: str, metric: MetricDefinition) -> str:
    labels = "{" + ",".join(metric.labels) + "}" if metric.labels else ""
    return f"| `{prefix}{metric.name}{labels}` | {metric.kind} | {metric.what} | {metric.high} | {metric.low} |"


if __name__ == "__main__":
    print(reference(), end="")
