"""The building blocks of conditions: a reason with its sentence, and a condition with its reasons and its policy.

A module of `plan.conditions` declares its reasons with `Reason`, and one `ConditionPolicy`. Calling a reason gives a
`ConditionUpdate`. Reasons are an interface that alerts and scripts read; sentences are for people.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple

from swarmgame_api.status import ConditionType

if TYPE_CHECKING:
    from swarmgame_operator.plan.reconcile_context import ReconcileContext

MAX_MESSAGE = 2_000
ConditionStatus = Literal["True", "False", "Unknown"]


class ConditionUpdate(NamedTuple):
    """The present state of one condition."""

    type: ConditionType
    status: ConditionStatus
    reason: str
    message: str

    @property
    def is_true(self) -> bool:
        return self.status == "True"


@dataclass(frozen=True)
class Reason:
    """A reason of a condition, and its sentence.

    Two entries may share a name if the reason has two sentences, or if its status depends on more than the reason.

    Args:
        type: the condition.
        status: of the condition when this is its reason.
        name: one word in CamelCase, listed in `swarmgame_api.status.REASONS`.
        message: a sentence with `{fields}`; a call fills them in.
        quiet: no event is published if this is the first reason of its status.
        warning: its event is a Warning.
        silent: no event is ever published: another condition has the same one.
    """

    type: ConditionType
    status: ConditionStatus
    name: str
    message: str
    quiet: bool = False
    warning: bool = False
    silent: bool = False

    def __call__(self, **fields: object) -> ConditionUpdate:
        """Return the update with this reason, its sentence on one line and of bounded length."""
        text = " ".join(self.message.format(**fields).split())
        text = text if len(text) <= MAX_MESSAGE else f"{text[: MAX_MESSAGE - 3]}..."
        return ConditionUpdate(self.type, self.status, self.name, text)


@dataclass(frozen=True)
class ConditionPolicy:
    """A condition: its type, all its reasons, and the function that decides it.

    Args:
        evaluate: returns None while the condition does not exist (Complete and Failed of a game that has not ended).
            It may read the conditions that stand before its own in `plan.conditions.CONDITIONS`.
    """

    type: ConditionType
    reasons: tuple[Reason, ...]
    evaluate: Callable[[ReconcileContext], ConditionUpdate | None]
