"""Advantages of discrete actions: rewards minus what they are compared with. Pure functions of numbers."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def action_advantages(
    scored: Sequence[tuple[int, float, bool]], baseline: str, expected: Sequence[float] | None, *, scale: bool
) -> list[float]:
    """Return rewards minus the baseline. A group of equal rewards gets exactly zero, unless a network compares.

    Args:
        scored: group, reward, and whether it is our own. Mean and deviation of an update are of our own where there
            are any, so that rewards of other peers' actions do not move the advantages of ours.
        baseline: that of `PolicyGradientConfig`.
        expected: rewards that a network expects, with `value`.
        scale: divide by the deviation.
    """
    if not scored:
        return []
    has_own = any(own for _, _, own in scored)
    if expected is not None:
        compared = [score - value for (_, score, _), value in zip(scored, expected, strict=True)]
    elif baseline == "none":
        compared = [score for _, score, _ in scored]
    else:
        by_group: dict[int, list[float]] = {}
        for number, score, own in scored:
            if baseline == "group" or own or not has_own:
                by_group.setdefault(number if baseline == "group" else 0, []).append(score)
        means = {
            number: values[0] if len(set(values)) == 1 else sum(values) / len(values)
            for number, values in by_group.items()
        }
        compared = [score - means[number if baseline == "group" else 0] for number, score, _ in scored]
    deviation = float(
        np.std([value for value, (_, _, own) in zip(compared, scored, strict=True) if own or not has_own])
    )
    return [value / deviation for value in compared] if scale and deviation > 0 else compared
