"""Drift watch: whether the policy becomes worse while the rollouts of other peers earn as much as before.

Rollouts that are plausible, scored by us and bounded in influence may still teach what held-out questions do not ask
for: a longer answer, a habit that part of the reward pays for. Held-out scores show it: an evaluation is a fall if it
is two standard errors below the second best of the last four (the best one is good by chance as well), and the remote
rollouts that were trained on meanwhile have lost less than half as much reward. A second fall in a row pauses sharing.
It resumes when an evaluation is within two standard errors of that level again, or after four evaluations, since the
cause may be our own. Pure state, part of the checkpoint; a game without evaluations has no drift watch.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from swarmgame.game.evaluation import ALL, Evaluation, mean_of, standard_error

ERRORS = 2.0
"""Standard errors of the difference that are no chance."""
FALLS = 2
"""Falls in a row that pause sharing."""
COMPARED = 4
"""Evaluations before a fall of which the second best is the reference; a single one is it itself."""
LONGEST_PAUSE = 4
"""Evaluations after which sharing resumes in any case."""


@dataclass(frozen=True, slots=True)
class _Mark:
    """One evaluation.

    Args:
        score: its mean; the mean of `scores` where they are known.
        error: standard error of the score.
        scores: by question.
        taught: mean reward of the remote rollouts that were trained on since the evaluation before; NaN without any.
    """

    score: float
    error: float
    scores: Mapping[str, float]
    taught: float

    def difference(self, other: _Mark) -> tuple[float, float]:
        """Return score minus the other's, and its standard error: of the same questions, where there are enough."""
        same = self.scores.keys() & other.scores.keys()
        if len(same) >= 2:
            paired = [self.scores[question] - other.scores[question] for question in sorted(same)]
            return mean_of(paired), standard_error(paired)
        return self.score - other.score, math.hypot(self.error, other.error)


class DriftWatch:
    """Decides whether groups of other peers are trained on."""

    def __init__(self) -> None:
        self._marks: deque[_Mark] = deque(maxlen=COMPARED)
        self._total, self._count = 0.0, 0
        self._falls = 0
        self._paused_for = -1
        self._reference: _Mark | None = None

    @property
    def paused(self) -> bool:
        """Whether no group of another peer is trained on."""
        return self._paused_for >= 0

    def add_rewards(self, rewards: Iterable[Sequence[float]]) -> None:
        """Add our own scores of the remote groups that a round trains on; NaN marks a rollout that was not scored."""
        scored = [value for values in rewards for value in values if not math.isnan(value)]
        self._total += sum(scored)
        self._count += len(scored)

    def add_evaluation(self, evaluation: Evaluation) -> str:
        """Add an evaluation after training.

        Returns:
            What has changed, a sentence without a full stop; empty if nothing has.
        """
        score = evaluation.average.get(ALL, math.nan)
        if math.isnan(score):
            return ""
        taught = self._total / self._count if self._count else math.nan
        mark = _Mark(score, evaluation.errors.get(ALL, math.nan), dict(evaluation.scores), taught)
        self._total, self._count = 0.0, 0
        return self._while_paused(mark) if self.paused else self._while_sharing(mark)

    def _while_sharing(self, mark: _Mark) -> str:
        if self._reference is None:
            best = sorted(self._marks, key=lambda each: -each.score)[:2]
            self._reference = best[-1] if best else None
        reference = self._reference
        if reference is None or not _is_fall(mark, reference):
            self._marks.append(mark)
            self._falls, self._reference = 0, None
            return ""
        self._falls += 1
        if self._falls < FALLS:
            return ""
        self._paused_for = 0
        return (
            f"groups of other peers are not used from now on: the held-out score fell from {reference.score:.3f} to "
            f"{mark.score:.3f} while their rewards stayed at {mark.taught:.3f} ({reference.taught:.3f} before)"
        )

    def _while_paused(self, mark: _Mark) -> str:
        reference, self._paused_for = self._reference, self._paused_for + 1
        assert reference is not None, "a pause has a reference"
        below, error = mark.difference(reference)
        recovered = not below < -ERRORS * error
        if not recovered and self._paused_for < LONGEST_PAUSE:
            return ""
        self._falls, self._paused_for, self._reference = 0, -1, None
        self._marks.clear()
        self._marks.append(mark)
        why = "is back" if recovered else f"is not back after {LONGEST_PAUSE} evaluations, so the cause may be our own"
        return f"groups of other peers are used again: the held-out score, {mark.score:.3f}, {why}"

    def state_dict(self) -> Mapping[str, Any]:
        return {
            "marks": [_packed(mark) for mark in self._marks],
            "reference": None if self._reference is None else _packed(self._reference),
            "counts": [self._total, self._count, self._falls, self._paused_for],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._marks.clear()
        self._marks.extend(map(_unpacked, state["marks"]))
        self._reference = None if state["reference"] is None else _unpacked(state["reference"])
        self._total, self._count, self._falls, self._paused_for = state["counts"]


def _is_fall(mark: _Mark, reference: _Mark) -> bool:
    """Return whether a score fell beyond chance, and the rewards of remote rollouts did not fall with it."""
    below, error = mark.difference(reference)
    if math.isnan(mark.taught) or math.isnan(error) or not below < -ERRORS * error:
        return False
    return math.isnan(reference.taught) or mark.taught - reference.taught > below / 2


def _packed(mark: _Mark) -> list[Any]:
    """Return plain values; NaN as None, which JSON has."""
    return [None if value != value else value for value in (mark.score, mark.error, mark.taught)] + [dict(mark.scores)]


def _unpacked(row: Sequence[Any]) -> _Mark:
    score, error, taught = (math.nan if value is None else float(value) for value in row[:3])
    return _Mark(score, error, row[3], taught)
