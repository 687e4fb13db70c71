"""The conditions of a game: one module a condition, and here the list of all.

A module holds the condition's reasons with their sentences, and the function that decides between them. To add a
condition, write its module and add its policy to `CONDITIONS`; the events, the page docs/reference/conditions.md
(`python -m swarmgame_operator.condition_reference`) and `build_plan` follow from the list. The schema lists types
and reasons too (`swarmgame_api.status`); a test names what it lacks.
"""

from __future__ import annotations

from swarmgame_api.status import ConditionType
from swarmgame_operator.plan.condition_policy import ConditionPolicy, ConditionUpdate, Reason
from swarmgame_operator.plan.conditions.accepted import ACCEPTED
from swarmgame_operator.plan.conditions.complete import COMPLETE
from swarmgame_operator.plan.conditions.degraded import DEGRADED
from swarmgame_operator.plan.conditions.failed import FAILED
from swarmgame_operator.plan.conditions.progressing import PROGRESSING
from swarmgame_operator.plan.conditions.ready import READY
from swarmgame_operator.plan.conditions.registered import REGISTERED
from swarmgame_operator.plan.conditions.suspended import SUSPENDED
from swarmgame_operator.plan.reconcile_context import ReconcileContext

CONDITIONS: tuple[ConditionPolicy, ...] = (
    ACCEPTED,
    SUSPENDED,
    REGISTERED,
    COMPLETE,
    FAILED,
    READY,
    PROGRESSING,
    DEGRADED,
)
"""In the order of evaluation: a policy may read the conditions before its own."""

_REASONS = {(reason.type, reason.name): reason for policy in CONDITIONS for reason in policy.reasons}


def evaluate_conditions(context: ReconcileContext) -> None:
    """Evaluate all conditions, in order, into `context.updates`."""
    for policy in CONDITIONS:
        update = policy.evaluate(context)
        if update is not None:
            context.updates[policy.type] = update


def find_reason(type: ConditionType, name: str) -> Reason:
    """Return a reason by its condition and name; one that this version does not know is an ordinary one."""
    return _REASONS.get((type, name)) or Reason(type, "True", name, "")


__all__ = ["CONDITIONS", "ConditionPolicy", "ConditionUpdate", "Reason", "evaluate_conditions", "find_reason"]
