"""Conditions from verdicts, and the events that their turns are worth.

Invariants: `lastTransitionTime` moves only when the status does; Complete and Failed, once True, stay as they are, and
exclude one another.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime

from swarmgame_api.status import REASONS, Condition, SwarmGameStatus
from swarmgame_operator.plan.outcome import Event
from swarmgame_operator.plan.scene import write_time
from swarmgame_operator.reasons import Verdict

TERMINAL = ("Complete", "Failed")
MAX_EVENT = 950
"""Of the 1,024 characters that the API takes."""
_UNWORTHY = frozenset({"AsExpected", "NotRequired", "Resumed", "Finished"})
"""Reasons that are news only after something else was so."""
_BAD = {"Accepted": "False", "Degraded": "True", "Failed": "True"}


def terminal(status: SwarmGameStatus) -> Condition | None:
    """How the game ended; None while it has not."""
    return next((each for each in status.conditions if each.type in TERMINAL and each.status == "True"), None)


def turned(
    before: SwarmGameStatus, verdicts: Iterable[Verdict], now: datetime, generation: int
) -> tuple[Condition, ...]:
    """The conditions as they should be written, in the order of the reference; types without a verdict stay as they
    were.
    """
    found = {each.type: each for each in before.conditions}
    ended = terminal(before)
    for verdict in verdicts:
        old = found.get(verdict.type)
        if verdict.type in TERMINAL and ended is not None:
            continue
        same = old is not None and old.status == verdict.status
        found[verdict.type] = Condition(
            type=verdict.type,
            status=verdict.status,
            reason=verdict.reason,
            message=verdict.message,
            observed_generation=generation,
            last_transition_time=old.last_transition_time if old is not None and same else write_time(now),
        )
    return tuple(found[type] for type in REASONS if type in found)


def events(before: SwarmGameStatus, after: Iterable[Condition]) -> tuple[Event, ...]:
    """One for every condition whose status or reason turned."""
    old = {each.type: each for each in before.conditions}
    found = []
    for condition in after:
        was = old.get(condition.type)
        if was is not None and (was.status, was.reason) == (condition.status, condition.reason):
            continue
        if condition.reason in _UNWORTHY and (was is None or was.status == condition.status):
            continue
        bad = _BAD.get(condition.type) == condition.status or condition.reason == "Stalled"
        found.append(Event("Warning" if bad else "Normal", condition.reason, condition.message[:MAX_EVENT]))
    return tuple(found)
