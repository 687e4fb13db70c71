"""Records: a finished round, reduced to what the rules of the diagnostics read."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from swarmgame.game.external_sampling import has_nonzero_advantage
from swarmgame.game.protocol import ClockError, ClosedBy
from swarmgame.game.report import RoundReport
from swarmgame.game.state import FinishReason, GameState, PeerId, Rewards


@dataclass(frozen=True, slots=True)
class GameFacts:
    """What the rules know of the game.

    Args:
        single_peer: the game has one peer by design.
        external_groups: most groups of other peers that a round trains on; 0: the game shares nothing.
        evaluate_every: rounds between evaluations; 0: never.
        trains: whether the trainer is meant to change its policy (`update: none` is not).
        full_reward: of a rollout that passes.
    """

    single_peer: bool = False
    external_groups: int = 0
    evaluate_every: int = 0
    trains: bool = True
    full_reward: float = 1.0


@dataclass(frozen=True, slots=True)
class RoundRecord:
    """One finished round of one peer.

    Args:
        members: number of live members, this peer included.
        missing: members that had not published when a stage closed.
        external: number of groups of other peers that were trained on.
        outcomes: number of messages and groups by outcome.
        rollouts, unscored, truncated: numbers of own rollouts; unscored ones have the reward NaN or none.
        spread: number of own groups with different rewards.
        low, high: smallest and largest reward of own rollouts; NaN where none was scored.
        skipped_steps: optimizer steps that were left out, because the gradient was not finite.
        policy_version: number of updates of the policy, after the round.
        evaluated: mean reward of the evaluation; NaN without a score, None without an evaluation.
        clock_error: of this machine; None where no other clock is known.
    """

    round: int
    members: int = 1
    missing: tuple[PeerId, ...] = ()
    closed_by: ClosedBy = ClosedBy.QUORUM
    external: int = 0
    outcomes: Mapping[str, int] = ()  # type: ignore[assignment]
    rollouts: int = 0
    unscored: int = 0
    truncated: int = 0
    spread: int = 0
    low: float = math.nan
    high: float = math.nan
    skipped_steps: int = 0
    policy_version: int = 0
    evaluated: float | None = None
    clock_error: ClockError | None = None


def record_of(
    report: RoundReport, state: GameState, rewards: Rewards, clock_error: ClockError | None = None
) -> RoundRecord:
    """Return the record of a finished round.

    Args:
        clock_error: as measured in its last stage. A report does not have it: it repeats after a resume.
    """
    own = state.own_groups()
    scores = [rewards.get(key) or [math.nan] * len(group.rollouts) for key, group in own]
    scored = [value for values in scores for value in values if not math.isnan(value)]
    rollouts = [rollout for _, group in own for rollout in group.rollouts]
    evaluation = report.evaluation
    return RoundRecord(
        round=report.round,
        members=len(report.members),
        missing=report.missing,
        closed_by=report.closed_by,
        external=sum(report.external.values()),
        outcomes=report.outcomes,
        rollouts=len(rollouts),
        unscored=len(rollouts) - len(scored),
        truncated=sum(rollout.finish_reason is FinishReason.LENGTH for rollout in rollouts),
        spread=sum(map(has_nonzero_advantage, scores)),
        low=min(scored, default=math.nan),
        high=max(scored, default=math.nan),
        skipped_steps=int(report.metrics.get("steps_skipped", 0)),
        policy_version=report.policy_version,
        evaluated=evaluation.average.get("all", math.nan) if evaluation is not None else None,
        clock_error=clock_error,
    )
