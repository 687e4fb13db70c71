"""The metrics of a peer and of a bootnode: what each is, and what a high or a low value means.

The collectors of `swarmgame.observability.metrics` and the page `docs/reference/metrics.md` are made from these lists:
`python -m swarmgame.observability.metric_definitions` prints the page.
"""

from __future__ import annotations

from swarmgame_common.metrics import MetricDefinition as Metric
from swarmgame_common.metrics import MetricType, metrics_table

PREFIX = "swarmgame_worker_"
BOOTNODE_PREFIX = "swarmgame_bootnode_"
GAUGE, COUNTER, HISTOGRAM = MetricType.GAUGE, MetricType.COUNTER, MetricType.HISTOGRAM

METRICS = (
    Metric(
        "info",
        GAUGE,
        "Always 1; the labels name the peer and its version.",
        labels=("peer", "index", "version"),
    ),
    Metric(
        "round",
        GAUGE,
        "The round in progress, counted from 0.",
        "The game is near its end.",
        "The game has just begun. A value that does not change is a stalled peer.",
    ),
    Metric(
        "rounds_total",
        COUNTER,
        "Rounds that this process has finished.",
        low="Compare the rate between peers: the slowest one delays the quorum.",
    ),
    Metric(
        "round_seconds",
        HISTOGRAM,
        "Wall time of a complete round.",
        "See `stage_seconds` for the part that takes it.",
        "Rounds may be too small to be worth an exchange.",
    ),
    Metric(
        "stage_seconds",
        GAUGE,
        "Wall time of the last round by part: data, generate, exchange, listen (verification of received rollouts), "
        "rewards, train, evaluate, checkpoint; and environment, the time of its plays, a part of generate, listen "
        "and evaluate.",
        "The part to make faster.",
        "The part that costs nothing.",
        labels=("part",),
    ),
    Metric(
        "exchange_seconds",
        HISTOGRAM,
        "Time that a stage waited for the swarm, from the request until it closed.",
        "Near the stage deadline: members are slow, away or unreachable; see `missing_total`.",
        "The other members had published before: this peer is the slow one.",
    ),
    Metric(
        "exchange_bytes_total",
        COUNTER,
        "Bytes sent to and received from the swarm.",
        "Many or long rollouts are shared.",
        "Nothing is shared, or no member is reached.",
        labels=("direction",),
    ),
    Metric(
        "tokens_total",
        COUNTER,
        "Tokens that this peer sampled; the rate is the generation throughput.",
        "Generation is fast, or answers are long.",
        "Generation is slow, or answers are short.",
    ),
    Metric(
        "reward",
        GAUGE,
        "Mean reward of this peer's own rollouts in the last round.",
        "The policy solves the questions.",
        "It does not. Flat for long: it does not learn.",
    ),
    Metric(
        "environment_reward",
        GAUGE,
        "The same by environment.",
        "This environment is solved: give it less weight, or make it harder.",
        "This environment is too hard, or gets too few questions.",
        labels=("environment",),
    ),
    Metric(
        "stage_reward",
        GAUGE,
        "The same by stage.",
        "This stage's answers are right.",
        "Below an earlier stage: seeing the other answers makes this one worse.",
        labels=("stage",),
    ),
    Metric(
        "completion_length",
        GAUGE,
        "Mean length of this peer's own rollouts in the last round, in tokens.",
        "Answers become long; see `truncated_share`.",
        "Answers become short, perhaps because only short ones are rewarded.",
    ),
    Metric(
        "truncated_share",
        GAUGE,
        "Share of them that used up their budget of tokens.",
        "The budget is too small, or the policy does not learn to stop.",
        "As it should be.",
    ),
    Metric(
        "turns",
        GAUGE,
        "Mean number of the policy's turns in this peer's own rollouts, in a game with an environment.",
        "Episodes use their turns up: the policy does not solve them, or needs many turns.",
        "Episodes end early: they are solved, or the policy gives up.",
    ),
    Metric(
        "zero_advantage_share",
        GAUGE,
        "Share of this peer's own groups whose rewards are all equal, so that they teach nothing.",
        "The questions are too easy or too hard. 1: nothing is learned from own rollouts.",
        "As it should be.",
    ),
    Metric(
        "evaluation_average",
        GAUGE,
        "Mean reward on held-out questions (avg@k); `all` is over all environments.",
        "The policy generalises.",
        "With a high `reward`: the policy has memorised its training questions.",
        labels=("environment",),
    ),
    Metric(
        "evaluation_error",
        GAUGE,
        "Standard error of `evaluation_average`, over questions.",
        "Too few questions: a difference of less than two errors may be chance.",
        "Changes are measured well.",
        labels=("environment",),
    ),
    Metric(
        "evaluation_stage",
        GAUGE,
        "Mean reward on held-out questions by stage.",
        "This stage's answers are right.",
        "Below an earlier stage: seeing the other answers makes this one worse.",
        labels=("stage",),
    ),
    Metric(
        "evaluation_pass_at",
        GAUGE,
        "Share of held-out questions that k rollouts pass (unbiased), of the sampled pass where there is one.",
        "Far above k = 1: the policy finds more than it prefers, so there is something to reinforce.",
        "It falls while `evaluation_average` rises: the policy only becomes more certain.",
        labels=("k",),
    ),
    Metric(
        "evaluation_passed",
        GAUGE,
        "Share of held-out questions with at least one right rollout (pass@k).",
        "There is something to reinforce.",
        "The policy finds no right answer even by sampling.",
        labels=("environment",),
    ),
    Metric(
        "entropy",
        GAUGE,
        "Mean entropy of the policy over the tokens trained on, in nats.",
        "The policy explores, or has not learned yet.",
        "The policy has converged; near 0 with a low reward: it has collapsed.",
    ),
    Metric(
        "kl",
        GAUGE,
        "Mean KL divergence from the reference policy over our own tokens, in nats; absent without one.",
        "The policy has moved far from its start.",
        "It has hardly moved.",
    ),
    Metric(
        "clip_ratio",
        GAUGE,
        "Share of tokens whose probability ratio was clipped.",
        "Steps are too long, or external groups too stale.",
        "The trust region does not bind.",
    ),
    Metric(
        "trainer",
        GAUGE,
        "Every other number that the trainer reported for the last round, by its name.",
        "See the trainer's documentation.",
        "See the trainer's documentation.",
        labels=("name",),
    ),
    Metric(
        "engine_requests_total",
        COUNTER,
        "Prompts sent to a generation server, repeated ones included; 0 without one (`trainer.with.sampler`).",
        "Many questions a round, or many retries.",
        "Nothing is generated.",
    ),
    Metric(
        "engine_retries_total",
        COUNTER,
        "Retries of completions or weights: the server was away, too slow, or had other weights.",
        "The server is restarted or overloaded: see its log, and `timeoutSeconds`.",
        "As it should be.",
    ),
    Metric(
        "engine_stale_total",
        COUNTER,
        "Times that the server did not have the policy's weights; what it generated with others was dropped.",
        "The server is restarted, or another peer uses it too.",
        "As it should be.",
    ),
    Metric(
        "engine_seconds_total",
        COUNTER,
        "Time waited for completions, including weights that had to be pushed first.",
        "Rounds wait for the server: give it more memory, or another GPU.",
    ),
    Metric(
        "engine_pushes_total",
        COUNTER,
        "Versions of the policy loaded into the server.",
        "Above the updates: the server lost its weights.",
        "Below the updates: the policy does not change.",
    ),
    Metric(
        "engine_push_seconds_total",
        COUNTER,
        "Time to save and load them.",
        "All weights go through files: train adapters, or put the folder into memory.",
    ),
    Metric(
        "policy_version",
        GAUGE,
        "Updates that the policy has had.",
        low="Less than the rounds: rounds without an update, because all rewards of each group were equal.",
    ),
    Metric(
        "external_groups_total",
        COUNTER,
        "Groups of other peers that were trained on.",
        "This peer learns much from other peers.",
        "No useful group is offered, or sharing is off.",
    ),
    Metric(
        "peers_connected",
        GAUGE,
        "Live members of the swarm, this peer included, when the last stage closed.",
        low="Below the number of replicas: peers are away. 1 is a swarm of one, see `alone`.",
    ),
    Metric(
        "members_by_standing",
        GAUGE,
        "Other live members by whether they count for quorum, present round and deadline: anchor, counted and "
        "provisional do; probation (too few complete rounds yet), missed (a stage waited in vain) and same-address "
        "(enough peers of its address count) do not.",
        "`probation` or `missed` for long: members that deliver nothing usable; invented ones, or peers that are too "
        "slow.",
        "`counted` and `anchor` low: stages wait for few peers.",
        labels=("standing",),
    ),
    Metric(
        "clock_error_seconds",
        GAUGE,
        "How far this machine's clock is ahead of those of the members that count (negative: behind): the least amount "
        "on which more than half of them agree. Heartbeats and announcements are judged by their sender's clock, so "
        "that rounds go on.",
        "This clock is wrong: synchronize it (NTP).",
        "Far below 0: likewise.",
    ),
    Metric(
        "alone",
        GAUGE,
        "1 while no other peer that counts is in the swarm, else 0.",
        "This peer trains by itself: check whether it can reach its initial peers.",
        "As it should be.",
    ),
    Metric(
        "missing_total",
        COUNTER,
        "Members that had not published when a stage closed, added up.",
        "Peers are too slow for the deadline or the quorum.",
        "All members publish in time.",
    ),
    Metric(
        "stages_closed_total",
        COUNTER,
        "Stages by why they closed: quorum, deadline, alone (no other member), behind (this peer lags).",
        "`deadline`: rounds take as long as the deadline allows. `behind`: this peer is too slow for the others.",
        "`quorum` low: members do not answer in time.",
        labels=("by",),
    ),
    Metric(
        "rounds_skipped_total",
        COUNTER,
        "Rounds that this peer left out, by cause: late (it entered after the game had begun), away (the swarm went on "
        "while it was stopped), slow (it was too far behind).",
        "`slow`: the other peers close stages without it: give it more cores, or raise the quorum.",
        "It plays every round.",
        labels=("cause",),
    ),
    Metric(
        "contributions_total",
        COUNTER,
        "Messages of other peers by outcome: accepted, late, duplicate, bad-signature, bad-hash, too-large, malformed, "
        "stale, …",
        "Any outcome but accepted: a peer is slow, misconfigured or hostile.",
        "`accepted` low: nothing is received.",
        labels=("outcome",),
    ),
    Metric(
        "warnings_total",
        COUNTER,
        "Warnings by code, each counted once for each cause; see warnings.md.",
        "The game does not do what was meant: read `/status` or the log.",
        "As it should be.",
        labels=("code",),
    ),
    Metric(
        "scoring_breaches_total",
        COUNTER,
        "Answers that broke a limit of the scoring sandbox, each of which scored 0, and those not run after them.",
        "A policy, perhaps this peer's own, writes programs as answers.",
        "As it should be.",
    ),
    Metric(
        "scoring_total",
        COUNTER,
        "Other events that the rewards counted, by name (scorer exceptions, time-outs, …).",
        "The scorer and the answers do not fit each other.",
        "As it should be.",
        labels=("event",),
    ),
    Metric(
        "checkpoint_seconds",
        HISTOGRAM,
        "Time that a checkpoint took.",
        "The disk is slow: checkpoint less often.",
    ),
    Metric(
        "last_round_timestamp_seconds",
        GAUGE,
        "Unix time at which the last round finished.",
        low="Far before the present: the peer is stalled.",
    ),
    Metric(
        "chain_messages",
        GAUGE,
        "Messages to the chain by state: waiting, final, rejected, dropped; absent without a chain.",
        "`waiting`: the chain or its gateway is away, see `chain.problem` in `/status`. `rejected`: see "
        "`chain.rejected` there.",
        "`final` low: rounds are played, but do not reach the chain.",
        labels=("state",),
    ),
)

BOOTNODE = (
    Metric(
        "members",
        GAUGE,
        "Heartbeats that this bootnode holds.",
        low="0 long after its start: the members do not find it, so newcomers that use it stay isolated.",
    ),
    Metric("bytes_sent", GAUGE, "Bytes sent since the start.", "Many newcomers, or one peer that requests a lot."),
    Metric("bytes_received", GAUGE, "Bytes received since the start.", "As above."),
    Metric("messages_sent", GAUGE, "Messages sent since the start.", "As above."),
    Metric("messages_received", GAUGE, "Messages received since the start.", "As above."),
)


def reference() -> str:
    """Return the text of `docs/reference/metrics.md`."""
    lines = [
        "# Metrics of a peer",
        "",
        "Every peer serves these on `/metrics`, beside `/healthz`, `/readyz` and `/status`. Histograms also have",
        "`_bucket`, `_count` and `_sum`. This page is made by",
        "`python -m swarmgame.observability.metric_definitions > docs/reference/metrics.md`.",
        "",
        *metrics_table(METRICS, PREFIX),
        "",
        "A bootnode serves these instead:",
        "",
        *metrics_table(BOOTNODE, BOOTNODE_PREFIX),
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(reference(), end="")
