"""Conditions in the status: merge updates into the earlier ones, and derive the events of the changes.

`lastTransitionTime` changes only with the condition's status. Complete and Failed exclude each other, and stay as they
are once one of them is True.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime

from swarmgame_api.status import REASONS, Condition, SwarmGameStatus
from swarmgame_operator.plan.condition_policy import ConditionUpdate
from swarmgame_operator.plan.conditions import find_reason
from swarmgame_operator.plan.plan_types import GameEvent
from swarmgame_operator.plan.reconcile_context import TERMINAL, terminal_condition, write_time

MAX_EVENT = 950
"""Of the 1,024 characters that the API accepts."""


def merge_conditions(
    before: SwarmGameStatus, updates: Iterable[ConditionUpdate], now: datetime, generation: int
) -> tuple[Condition, ...]:
    """Return the conditions to write, in the order of the reference. Types without an update stay as they were."""
    found = {each.type: each for each in before.conditions}
    ended = terminal_condition(before)
    for update in updates:
        old = found.get(update.type)
        if update.type in TERMINAL and ended is not None and update.is_true:
            continue
        same = old is not None and old.status == update.status
        found[update.type] = Condition(
            type=update.type,
            status=update.status,
            reason=update.reason,
            message=update.message,
            observed_generation=generation,
            last_transition_time=old.last_transition_time if old is not None and same else write_time(now),
        )
    return tuple(found[type] for type in REASONS if type in found)


def condition_events(before: SwarmGameStatus, after: Iterable[Condition]) -> tuple[GameEvent, ...]:
    """Return an event for every condition whose status or reason changed."""
    old = {each.type: each for each in before.conditions}
    found = []
    for condition in after:
        earlier = old.get(condition.type)
        if earlier is not None and (earlier.status, earlier.reason) == (condition.status, condition.reason):
            continue
        reason = find_reason(condition.type, condition.reason)
        if reason.silent or (reason.quiet and (earlier is None or earlier.status in (condition.status, "Unknown"))):
            continue
        message = condition.message[:MAX_EVENT]
        found.append(GameEvent("Warning" if reason.warning else "Normal", condition.reason, message))
    return tuple(found)
