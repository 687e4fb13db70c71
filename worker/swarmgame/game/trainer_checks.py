"""Checks of what a Trainer returns: one group per prompt, and metrics that are numbers.

Pure functions, like `reward_checks`. Invariant: after `checked_metrics` every value is a float, NaN where it is not
finite.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from swarmgame.errors import BadGame
from swarmgame.game.state import Group, Prompt
from swarmgame.user_code import as_number, kind_of


def checked_groups(groups: object, prompts: Sequence[Prompt], name: str) -> tuple[Group, ...]:
    """Return the groups of a call of `Trainer.generate`.

    Args:
        name: of the trainer's class, for messages.

    Raises:
        BadGame: not one group per prompt, in order.
    """
    if not isinstance(groups, Sequence) or isinstance(groups, str | bytes):
        raise BadGame(f"{name}.generate returned {kind_of(groups)}; expected a list of {len(prompts)} groups")
    if len(groups) != len(prompts):
        raise BadGame(
            f"{name}.generate returned {len(groups)} groups for {len(prompts)} prompts; expected one a prompt"
        )
    for group, prompt in zip(groups, prompts, strict=True):
        if not isinstance(group, Group):
            raise BadGame(f"{name}.generate returned a list with {kind_of(group)}; expected a list of Group")
        if group.question_id != prompt.question_id:
            raise BadGame(
                f"{name}.generate returned a group of question {group.question_id} for the prompt of question "
                f"{prompt.question_id}; expected one group a prompt, in order"
            )
    return tuple(groups)


def checked_metrics(metrics: object, name: str) -> dict[str, float]:
    """Return the metrics of a call of `Trainer.train` as floats.

    Raises:
        BadGame: not a mapping from names to single numbers.
    """
    if not isinstance(metrics, Mapping):
        raise BadGame(f"{name}.train returned {kind_of(metrics)}; expected a mapping from names to numbers")
    checked: dict[str, float] = {}
    for key, value in metrics.items():
        number = as_number(value)
        if number is None:
            raise BadGame(f"{name}.train returned the metric {key!r} as {kind_of(value)}; expected a number")
        checked[str(key)] = number if math.isfinite(number) else math.nan
    return checked
