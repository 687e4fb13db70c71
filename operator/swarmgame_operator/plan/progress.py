"""ProgressStatus in the status: the round, the remaining time, and when a game counts as stalled.

The usual time of a round is kept in the status itself: the last estimate, corrected by every advance since. No other
history is needed. `lastUpdatedTime` is when a round last ended, as far as known, and never changes without one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from swarmgame_api.status import MAX_COUNT, CheckpointStatus, MetricStatus, ProgressStatus
from swarmgame_operator.plan.reconcile_context import ReconcileContext, read_time, terminal_condition, write_time

NEWEST_WEIGHT = 0.3
"""Weight of the newest rounds in the usual time of a round."""
PEER_LAG = 2
"""Peers are a round or two apart: a report of so few rounds less comes from another peer, and is not a loss."""
STALL_ROUNDS = 10
"""A game is stalled after this many usual round times without a round."""
MIN_STALL_SECONDS = 300
SILENT_SECONDS = 25.0
"""Peers that have never answered for this long are reported, within 30 s of their being ready; later after twice as
long, because a busy peer may miss an answer.
"""
MAX_METRICS = 32


def progress_status(context: ReconcileContext) -> ProgressStatus:
    """Return the status's progress. A ready swarm has begun, even if no peer has answered yet."""
    rounds, before, answer = context.rounds, context.before.progress, context.observed.progress
    now = context.observed.now
    if terminal_condition(context.before) is not None and context.over:
        return before  # its maxRounds are those that were played
    if context.end == "Complete":
        played = before.round if context.spec.completion.policy == "Coordinator" else rounds
        return before.model_copy(
            update={
                "round": max(played, before.round),
                "max_rounds": rounds,
                "percentage": 100,
                "estimated_remaining_seconds": 0,
                "last_updated_time": before.last_updated_time or write_time(now),
            }
        )
    if answer is None or answer.seen > now:
        begun = before.last_updated_time or (write_time(now) if context.updates["Ready"].is_true else None)
        return before.model_copy(update={"max_rounds": rounds, "last_updated_time": begun})
    lagging = 0 < before.round - answer.rounds_finished <= PEER_LAG
    played = before.round if lagging else min(answer.rounds_finished, rounds)
    moved = played != before.round or before.last_updated_time is None
    updated = min(answer.round_finished or answer.seen, now) if moved else None
    seconds = _seconds_per_round(context, played)
    remaining = None if seconds is None else min(MAX_COUNT, round((rounds - played) * seconds))
    return ProgressStatus(
        round=played,
        stage=max(0, answer.stage),
        max_rounds=rounds,
        percentage=min(100, 100 * played // rounds),
        estimated_remaining_seconds=remaining,
        last_updated_time=write_time(updated) if updated is not None else before.last_updated_time,
        metrics=_metrics(answer.metrics),
    )


def checkpoint_status(context: ReconcileContext) -> CheckpointStatus | None:
    """Return the newest checkpoint that a peer reported, with the time of the first report."""
    answer, before = context.observed.progress, context.before.checkpoint
    if answer is None or answer.checkpoint is None or answer.checkpoint < 0:
        return before
    if before is not None and before.round == answer.checkpoint:
        return before
    return CheckpointStatus(round=answer.checkpoint, time=write_time(min(answer.seen, context.observed.now)))


def seconds_to_stall(context: ReconcileContext, progress: ProgressStatus) -> float | None:
    """Return the seconds until the game may count as stalled; None if it does, or if no peer has answered."""
    if progress.last_updated_time is None or context.observed.progress is None:
        return None
    left = _stall_limit(context, progress) - _seconds_since_round(context, progress.last_updated_time)
    return left + 1.0 if left >= 0 else None


def stalled_after(context: ReconcileContext, progress: ProgressStatus) -> int | None:
    """Return the seconds for which no round has ended at least; None within the limit, and while no peer has answered:
    then nothing is known of the rounds.
    """
    if progress.last_updated_time is None or context.observed.progress is None:
        return None
    limit = _stall_limit(context, progress)
    return round(limit) if _seconds_since_round(context, progress.last_updated_time) > limit else None


def is_silent(context: ReconcileContext) -> bool:
    """Return whether the ready peers have not answered for so long that it is no accident."""
    return context.observed.poll.silent_since is not None and seconds_to_silence(context) is None


def seconds_to_silence(context: ReconcileContext) -> float | None:
    """Return the seconds until peers that do not answer are reported; None if they are, or if they answer."""
    since = context.observed.poll.silent_since
    if since is None:
        return None
    patience = SILENT_SECONDS if context.observed.progress is None else 2 * SILENT_SECONDS
    left = patience - (context.observed.now - since).total_seconds()
    return left if left > 0 else None


def _seconds_since_round(context: ReconcileContext, updated: str) -> float:
    """Return the seconds since a round ended, or since peers could last begin to run: a suspension is no stall."""
    since = [read_time(updated)]
    for type in ("Suspended", "Accepted"):
        condition = next((each for each in context.before.conditions if each.type == type), None)
        if condition is not None:
            since.append(read_time(condition.last_transition_time))
    return (context.observed.now - max(since)).total_seconds()


def _stall_limit(context: ReconcileContext, progress: ProgressStatus) -> float:
    """Return the limit: twice the deadlines of all stages of a round, or ten usual rounds if that is longer."""
    game = context.spec.game
    deadline = 2.0 * game.stages * game.progression.stage_deadline_seconds
    left, rest = progress.estimated_remaining_seconds, progress.max_rounds - progress.round
    usual = left / rest if left is not None and rest > 0 else 0.0
    return max(MIN_STALL_SECONDS, deadline, STALL_ROUNDS * usual)


def _seconds_per_round(context: ReconcileContext, played: int) -> float | None:
    before, answer = context.before.progress, context.observed.progress
    rest = before.max_rounds - before.round
    usual = (
        before.estimated_remaining_seconds / rest
        if before.estimated_remaining_seconds is not None and rest > 0
        else None
    )
    advanced = played - before.round
    if answer is None or answer.round_finished is None or before.last_updated_time is None or advanced <= 0:
        return usual
    since = read_time(before.last_updated_time)
    suspended = context.last("Suspended")
    if suspended is not None and read_time(suspended.last_transition_time) > since:
        return usual  # the time in between contains a suspension
    finished = min(answer.round_finished, context.observed.now)
    newest = max(0.0, (finished - since).total_seconds()) / advanced
    return newest if usual is None else (1 - NEWEST_WEIGHT) * usual + NEWEST_WEIGHT * newest


def _metrics(figures: Mapping[str, float]) -> tuple[MetricStatus, ...]:
    """Return figures as text, as the API has no floats, without NaN and infinity."""
    finite = sorted((name[:64], figure) for name, figure in figures.items() if name and math.isfinite(figure))
    return tuple(MetricStatus(name=name, value=f"{figure:.6g}") for name, figure in finite[:MAX_METRICS])
