"""Checks of what a RewardManager returns, before a policy is trained on it.

A manager is the author's code: it may return too few rewards, text, tensors, or nothing. What is a number becomes a
float; anything else ends the run with a message that names class, group, what came, and what was expected. Pure
functions. Invariant: after `checked_rewards` every group has one float per rollout, finite or NaN (not scored).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from swarmgame.errors import BadGame
from swarmgame.game.state import FinishReason, GameState, GroupKey, Rewards
from swarmgame.user_code import CodeError, as_number, kind_of

EXPECTED = "a number for each rollout, finite, or NaN for a rollout that could not be scored"


@dataclass(frozen=True, slots=True)
class ScoringFailure:
    """One kind of failed call of a reward function: an exception of one class at one line, a time-out, …

    Args:
        error: the first one.
        count: how many there were.
        cure: what the author can do, as a sentence.
    """

    error: CodeError
    count: int
    cure: str = ""


def checked_rewards(rewards: object, state: GameState, name: str) -> Rewards:
    """Return the rewards as floats; NaN for a rollout whose environment failed, whatever was returned.

    Args:
        rewards: what the manager returned.
        state: what it was called with.
        name: of its class, for messages.

    Raises:
        BadGame: not a mapping from this state's groups to one number per rollout.
    """
    if not isinstance(rewards, Mapping):
        raise BadGame(
            f"{name}.rewards returned {kind_of(rewards)}; expected a mapping from each key of state.groups() to "
            f"{EXPECTED}"
        )
    groups = dict(state.groups())
    checked: dict[GroupKey, Sequence[float]] = {}
    for key, values in rewards.items():
        if key not in groups:
            raise BadGame(
                f"{name}.rewards returned rewards for {kind_of(key)}, which is no group of this round; "
                "expected keys of state.groups()"
            )
        key = GroupKey(*key)
        rollouts = groups[key].rollouts
        found = _checked_group(values, len(rollouts), f"{name}.rewards, {_place(key)}")
        checked[key] = [
            math.nan if rollout.finish_reason is FinishReason.ERROR else value
            for value, rollout in zip(found, rollouts, strict=True)
        ]
    return checked


def require_scores(rewards: Rewards, state: GameState, name: str) -> None:
    """Check that at least one rollout of a round was scored. Rollouts of other peers alone end no run.

    Raises:
        BadGame: there are own rollouts, and every reward is NaN or missing.
    """
    rollouts = {key: len(group.rollouts) for key, group in state.groups()}
    total = sum(rollouts.values())
    has_own = any(count for key, count in rollouts.items() if key.peer == state.peer)
    if not has_own or any(not math.isnan(value) for values in rewards.values() for value in values):
        return
    missing = sum(count for key, count in rollouts.items() if key not in rewards)
    found = "no group had rewards" if missing == total else "every reward was NaN"
    if 0 < missing < total:
        found = f"every reward was NaN, and the groups of {missing} rollouts had none"
    raise BadGame(
        f"{name}.rewards scored none of the {total} rollouts of round {state.round.number}: {found}. Expected "
        f"{EXPECTED}. Without a score nothing can be learned"
    )


def name_of(rewards: object) -> str:
    """Return the name of a manager's class, for messages; of the inner one, where it passes on another's rewards."""
    return type(getattr(rewards, "inner", None) or rewards).__name__


def _checked_group(values: object, rollouts: int, place: str) -> Sequence[float]:
    as_list = getattr(values, "tolist", None)
    found = as_list() if callable(as_list) else values
    if not isinstance(found, Sequence) or isinstance(found, str | bytes):
        raise BadGame(f"{place}: returned {kind_of(values)}; expected a list of {rollouts} numbers, one per rollout")
    if len(found) != rollouts:
        raise BadGame(
            f"{place}: returned {len(found)} reward{'s' if len(found) != 1 else ''} for {rollouts} rollouts; expected "
            "one per rollout, in order"
        )
    return [_checked_value(value, f"{place}, rollout {index}") for index, value in enumerate(found)]


def _checked_value(value: object, place: str) -> float:
    number = as_number(value)
    if number is None:
        raise BadGame(f"{place}: returned {kind_of(value)}; expected a number")
    if math.isinf(number):
        raise BadGame(
            f"{place}: returned {number}; expected a finite number, or NaN for a rollout that could not be scored"
        )
    return number


def _place(key: GroupKey) -> str:
    return f"round {key.round}, stage {key.stage}, question {key.question_id} of peer …{key.peer[-6:]}"
