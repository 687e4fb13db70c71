"""The report of a round, and the observers that receive it.

`RoundReport` is one line of `metrics.jsonl`, one row of the table, one scrape of Prometheus. Observers do not
influence the game. Invariant: everything except `seconds`, `outcomes` and `bytes_*` is a function of seeds and
contributions, so a resumed run repeats it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from enum import StrEnum
from typing import Any

from swarmgame.game.evaluation import Evaluation, mean_of
from swarmgame.game.external_sampling import has_nonzero_advantage
from swarmgame.game.protocol import ClosedBy, Collected
from swarmgame.game.state import FinishReason, GameState, PeerId, Rewards, Rollout, Round
from swarmgame.game.verification import VerifiedRollouts


class SkipCause(StrEnum):
    """Why a peer left out rounds.

    LATE: it entered after the game had begun. AWAY: the swarm went on while it was stopped. SLOW: the other peers
    closed stages without it, and got further ahead than `maxStalenessRounds` allows.
    """

    LATE = "late"
    AWAY = "away"
    SLOW = "slow"


@dataclass(frozen=True)
class RoundReport:
    """One finished round of one peer.

    Args:
        round: its number.
        peer: author of the report.
        reward: mean reward of our own rollouts over all stages; NaN when none was scored.
        stage_rewards: the same by stage.
        environments: the same by environment.
        role: of this peer in this round; empty where the game has no roles.
        rollouts: number of our own rollouts.
        truncated_share: share of them that used up their budget; NaN without any.
        turns: mean number of the policy's turns in our own rollouts; NaN without an environment.
        zero_advantage_share: share of our own groups whose scored rewards are all equal; NaN without any.
        metrics: what `Trainer.train` returned.
        external: number of groups of other peers that were trained on, by author.
        influence: share of the update of other peers' rollouts, by author; empty where the trainer does not report it.
        refused: groups and rollouts of other peers that were not trained on, by author and outcome. Those that are only
            not selected are not counted.
        members, missing: of the last stage, as in `Collected`.
        closed_by: of the last stage.
        tokens: number of ids that this peer sampled.
        policy_version: after training.
        seconds: wall time by phase: data, generate, exchange, listen, rewards, train, evaluate, checkpoint (all
            observers of the round before), round; environment: of its plays, which are part of other phases.
        outcomes: number of messages by outcome, in this round.
        counters: running totals of the RewardManager (breaches, scorer exceptions) and of the environment.
        weights: hash of the policy's weights after training; empty where it is not computed.
        evaluation: after training; None when this round had none.
        first_evaluation: before the first update; only in the report of a peer's first round.
    """

    round: int
    peer: PeerId
    reward: float
    stage_rewards: tuple[float, ...]
    environments: Mapping[str, float]
    metrics: Mapping[str, float]
    external: Mapping[PeerId, int]
    members: tuple[PeerId, ...]
    missing: tuple[PeerId, ...]
    closed_by: ClosedBy
    tokens: int
    policy_version: int
    seconds: Mapping[str, float] = field(default_factory=dict)
    outcomes: Mapping[str, int] = field(default_factory=dict)
    counters: Mapping[str, int] = field(default_factory=dict)
    bytes_sent: int = 0
    bytes_received: int = 0
    evaluation: Evaluation | None = None
    weights: str = ""
    first_evaluation: Evaluation | None = None
    role: str = ""
    rollouts: int = 0
    truncated_share: float = math.nan
    zero_advantage_share: float = math.nan
    turns: float = math.nan
    influence: Mapping[PeerId, float] = field(default_factory=dict)
    refused: Mapping[PeerId, Mapping[str, int]] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """Return the report as JSON-like values, with NaN as None."""
        return {each.name: _plain(getattr(self, each.name)) for each in fields(self)}


def _plain(value: Any) -> Any:
    if isinstance(value, float) and value != value:
        return None
    if isinstance(value, Evaluation):
        return _plain(value.as_json())
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value


def own_rollouts(state: GameState, rewards: Rewards) -> dict[str, Any]:
    """Return the fields of a report that are about the peer's own rollouts."""
    own = state.own_groups()
    by_stage: dict[int, list[float]] = {stage: [] for stage in range(state.round.stages)}
    by_environment: dict[str, list[float]] = {}
    for key, _ in own:
        scored = [reward for reward in rewards.get(key, ()) if not math.isnan(reward)]
        by_stage[key.stage] += scored
        by_environment.setdefault(state.questions[key.question_id].reference.environment, []).extend(scored)
    rollouts = [rollout for _, group in own for rollout in group.rollouts]
    return {
        "reward": mean_of([value for values in by_stage.values() for value in values]),
        "stage_rewards": tuple(map(mean_of, by_stage.values())),
        "environments": {name: mean_of(values) for name, values in sorted(by_environment.items())},
        "role": state.round.role,
        "tokens": sum(len(rollout.logprobs) for rollout in rollouts),
        "rollouts": len(rollouts),
        "truncated_share": mean_of([float(rollout.finish_reason is FinishReason.LENGTH) for rollout in rollouts]),
        "turns": mean_of([float(len(rollout.turns)) for rollout in rollouts if is_played(rollout)]),
        "zero_advantage_share": mean_of([float(not has_nonzero_advantage(rewards.get(key, ()))) for key, _ in own]),
    }


def is_played(rollout: Rollout) -> bool:
    """Return whether an environment answered a rollout, or failed to."""
    return bool(rollout.segments or rollout.turn_rewards) or rollout.finish_reason is FinishReason.ERROR


class Observer:
    """Hooks of the loop, each empty. An exception in a hook ends the run."""

    def game_started(self, first_round: int, max_rounds: int) -> None:
        """Before the first round of this process."""

    def rounds_skipped(self, first: int, count: int, cause: SkipCause) -> None:
        """This peer leaves out `count` rounds from `first` on."""

    def round_started(self, round: Round) -> None:
        """Membership and seeds are known; nothing has been generated."""

    def stage_closed(self, round: Round, stage: int, collected: Collected) -> None:
        """A stage of the round is over."""

    def stage_verified(self, state: GameState, collected: Collected, verified: VerifiedRollouts) -> None:
        """What was collected in a stage was compared with our own data; `state` is from before."""

    def round_finished(self, report: RoundReport, state: GameState, rewards: Rewards) -> None:
        """After training. Observers are called in order: metrics first, then the checkpoint."""

    def game_finished(self, rounds: int) -> None:
        """All rounds are finished, or a stop was requested."""
