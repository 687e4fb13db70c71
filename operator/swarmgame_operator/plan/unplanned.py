"""Conditions of games for which there is no plan: their namespace cannot be watched, what they refer to cannot be read,
or planning them fails. They say why, and what runs goes on.
"""

from __future__ import annotations

from swarmgame_operator.plan.condition_policy import ConditionUpdate, Reason
from swarmgame_operator.plan.cures import cure
from swarmgame_operator.plan.obstacles import sentence

MAX_ERROR = 1_000
"""Characters of an error that a condition quotes."""

PLAN_FAILED = Reason(
    "Degraded",
    "True",
    "PlanFailed",
    "The operator cannot work out what this game needs, so it changes nothing, and what runs goes on: {error} This is "
    "a fault of the operator: report it with the operator's log. It tries again at least every three minutes.",
    warning=True,
)
NOT_SERVED = Reason(
    "Degraded",
    "True",
    "NotServed",
    "The operator does nothing in this namespace, because it cannot watch its objects of kind {kind}: {answer} {cure}",
    warning=True,
)
REFERENCES_UNREADABLE = Reason(
    "Degraded", "True", "ObjectRefused", "What the game refers to cannot be read: {answer} {cure}", warning=True
)
UNPLANNED = (REFERENCES_UNREADABLE, NOT_SERVED, PLAN_FAILED)


def not_served(kind: str, error: str) -> ConditionUpdate:
    """Return the condition of a game whose namespace the operator cannot watch, or (no kind) whose references it cannot
    read.
    """
    answer = sentence(error)
    if not kind:
        return REFERENCES_UNREADABLE(answer=answer, cure=cure(answer))
    return NOT_SERVED(kind=kind, answer=answer, cure=cure(answer))


def plan_failed(error: Exception) -> ConditionUpdate:
    """Return the condition of a game for which `build_plan` raised an error."""
    return PLAN_FAILED(error=sentence(f"{type(error).__name__}: {error}"[:MAX_ERROR]))
