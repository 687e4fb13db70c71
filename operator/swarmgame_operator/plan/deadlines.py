"""Deadlines: how long a game may wait, run, and exist after its end.

Time is measured from the conditions' transition times, so a restart of the operator neither stops nor resets it. It
counts while peers may run: time in a queue, or suspended by the author, does not count, and a game that was suspended
gets its full time again, as a Job does.
"""

from __future__ import annotations

from swarmgame_operator.plan.reconcile_context import ReconcileContext, read_time


def admitted_seconds(context: ReconcileContext) -> float | None:
    """Return for how long peers may have run; None while they may not."""
    if context.suspended or not context.accepted:
        return None
    since = [context.seconds_since("Suspended", "False"), context.seconds_since("Accepted", "True")]
    last = context.last("Complete")
    if last is not None and not last.is_true:  # it plays on since then
        since.append(context.seconds_since("Complete", "False"))
    return min(since)


def seconds_to_deadline(context: ReconcileContext) -> float | None:
    """Return the seconds until a deadline may have passed; None if time alone changes nothing."""
    admitted = admitted_seconds(context)
    if admitted is None:
        return None
    limits = [limit for limit in (context.spec.active_deadline_seconds,) if limit is not None]
    if not context.begun:
        limits.append(context.spec.pre_running_deadline_seconds)
    return max(0.0, min(limits) - admitted) + 1.0 if limits else None


def seconds_to_live(context: ReconcileContext) -> float | None:
    """Return the seconds until a finished game is deleted (now, if not positive); None if it is kept."""
    ttl, ended = context.spec.ttl_seconds_after_finished, context.before.completion_time
    if ttl is None or ended is None:
        return None
    return ttl - (context.observed.now - read_time(ended)).total_seconds()
