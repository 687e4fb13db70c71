"""Own likelihood: how improbable our own rollouts are under our own policy, and so which remote ones are implausible.

A remote rollout with tokens that our policy hardly ever samples (text of another kind, junk behind an answer) could
teach it anything that scores. Two numbers are compared: the log-probability of any `WINDOW` consecutive tokens, divided
by `WINDOW`, and the mean over all tokens. A rollout shorter than a window counts as if the rest of it were certain, so
that one rare token does not make a short rollout implausible. The floor of each is six deviations below the mean of our
own, or the least of our own where that is lower. Shapes: B rollouts, T completion tokens.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
import torch
from torch import Tensor

WINDOW = 8
DEVIATIONS = 6.0
LEAST_DEVIATION = 0.25
"""Nats a token. A policy that has become certain has a deviation near 0, and would refuse whatever differs."""
ROUNDS = 4
"""A policy may become sure within a few rounds, and what it sampled before would keep the floors low."""
LEAST_ROLLOUTS = 8
"""Without so many own rollouts there are no floors."""


@dataclass(frozen=True, slots=True)
class Floors:
    """Least plausible values, in nats a token: of any window, and of the mean."""

    window: float
    mean: float


@dataclass(frozen=True, slots=True)
class _Moments:
    """Count, sum, sum of squares and least of some values."""

    count: int
    total: float
    squares: float
    least: float

    @classmethod
    def of(cls, values: np.ndarray[Any, Any]) -> _Moments:
        return cls(len(values), float(values.sum()), float((values * values).sum()), float(values.min()))


class OwnLikelihood:
    """Statistics of our own rollouts in the last `ROUNDS` rounds. Part of the checkpoint."""

    def __init__(self) -> None:
        self._rounds: deque[tuple[_Moments, _Moments]] = deque(maxlen=ROUNDS)

    def add(self, rollouts: Iterable[Sequence[float]]) -> None:
        """Add the rollouts of a round.

        Args:
            rollouts: log-probabilities of their tokens, as sampled.
        """
        found = [logprobs for logprobs in rollouts if len(logprobs)]
        if found:
            lengths = np.array([len(logprobs) for logprobs in found])
            ends = np.cumsum(lengths)
            sums = np.concatenate([[0.0], np.cumsum(np.fromiter(chain.from_iterable(found), np.float64, ends[-1]))])
            windows = np.maximum(lengths - WINDOW, 0) + 1  # of each rollout; a short one is one window
            starts = np.arange(windows.sum()) + np.repeat(ends - lengths - (np.cumsum(windows) - windows), windows)
            widths = np.repeat(np.minimum(lengths, WINDOW), windows)
            means = (sums[ends] - sums[ends - lengths]) / np.maximum(lengths, WINDOW)
            self._rounds.append((_Moments.of((sums[starts + widths] - sums[starts]) / WINDOW), _Moments.of(means)))

    def floors(self) -> Floors | None:
        """Return the floors; None while there are too few own rollouts."""
        if sum(means.count for _, means in self._rounds) < LEAST_ROLLOUTS:
            return None
        windows, means = zip(*self._rounds, strict=True)
        return Floors(_floor(windows), _floor(means))

    def state_dict(self) -> list[Any]:
        return [[[m.count, m.total, m.squares, m.least] for m in pair] for pair in self._rounds]

    def load_state_dict(self, state: Sequence[Any]) -> None:
        self._rounds.clear()
        self._rounds.extend((_Moments(*windows), _Moments(*means)) for windows, means in state)


def implausible(logprobs_BT: Tensor, mask_BT: Tensor, floors: Floors) -> Tensor:
    """Return which rollouts are below a floor; bool, of shape [B].

    Args:
        logprobs_BT: under our own policy, without gradient.
    """
    known_BT = logprobs_BT.double().masked_fill(~mask_BT.bool(), 0.0)
    sums_BT = torch.nn.functional.pad(known_BT.cumsum(dim=1), (1, 0))
    windows_BT = sums_BT[:, WINDOW:] - sums_BT[:, :-WINDOW] if sums_BT.shape[1] > WINDOW else sums_BT[:, -1:]
    means_B = sums_BT[:, -1] / mask_BT.sum(dim=1).clamp(min=WINDOW)
    return (windows_BT.amin(dim=1) / WINDOW < floors.window) | (means_B < floors.mean)


def _floor(found: Sequence[_Moments]) -> float:
    count, total, squares = (sum(getattr(m, name) for m in found) for name in ("count", "total", "squares"))
    mean = total / count
    deviation = max(math.sqrt(max(squares / count - mean * mean, 0.0)), LEAST_DEVIATION)
    return float(min(mean - DEVIATIONS * deviation, *(m.least for m in found)))
