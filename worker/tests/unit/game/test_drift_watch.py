"""Sharing pauses while held-out scores fall and the rewards of other peers' rollouts do not."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Sequence

import pytest

from swarmgame.game.drift_watch import COMPARED, LONGEST_PAUSE, DriftWatch
from swarmgame.game.evaluation import Evaluation, standard_error

QUESTIONS = 64


def evaluation(score: float, *, scores: bool = True) -> Evaluation:
    """One in which a share of the questions is answered, always the same ones first."""
    values = [float(index < score * QUESTIONS) for index in range(QUESTIONS)]
    return Evaluation(
        {"all": sum(values) / QUESTIONS},
        {},
        1,
        errors={"all": standard_error(values)},
        scores={str(index): value for index, value in enumerate(values)} if scores else {},
    )


def watched(scores: Sequence[float], taught: Sequence[float], watch: DriftWatch | None = None) -> list[bool]:
    """Whether sharing is paused after each evaluation."""
    watch, found = watch or DriftWatch(), []
    for score, reward in zip(scores, taught, strict=True):
        watch.add_rewards([[reward] * 8])
        watch.add_evaluation(evaluation(score))
        found.append(watch.paused)
    return found


@pytest.mark.parametrize(
    ("scores", "taught", "paused"),
    [
        ([0.5, 0.6, 0.4, 0.3], [0.5, 0.5, 0.5, 0.5], [False, False, False, True]),
        ([0.5, 0.6, 0.4, 0.3], [0.5, 0.5, 0.6, 0.7], [False, False, False, True]),
        ([0.6, 0.4, 0.6, 0.4], [0.5, 0.5, 0.5, 0.5], [False] * 4),
        ([0.5, 0.6, 0.4, 0.3], [0.5, 0.5, 0.3, 0.2], [False] * 4),
        ([0.5, 0.6, 0.59, 0.58], [0.5, 0.5, 0.5, 0.5], [False] * 4),
        ([0.5, 0.6, 0.4, 0.3], [math.nan] * 4, [False] * 4),
        ([0.6, 0.55, 0.5, 0.45, 0.4], [0.5] * 5, [False, False, False, True, True]),
    ],
    ids=["falls twice", "while rewards rise", "once only", "rewards fall too", "chance", "nothing taught", "slowly"],
)
def test_two_falls_in_a_row_pause_sharing(scores: Sequence[float], taught: Sequence[float], paused: list[bool]) -> None:
    assert watched(scores, taught) == paused


def test_it_says_what_happened_and_resumes_when_the_score_is_back() -> None:
    watch = DriftWatch()
    watched([0.6, 0.4], [0.5, 0.5], watch)
    watch.add_rewards([[0.5, math.nan]])
    assert watch.add_evaluation(evaluation(0.3)) == (
        "groups of other peers are not used from now on: the held-out score fell from 0.609 to 0.312 while their "
        "rewards stayed at 0.500 (0.500 before)"
    )
    assert watch.add_evaluation(evaluation(0.4)) == ""
    assert watch.paused
    assert "used again: the held-out score, 0.594, is back" in watch.add_evaluation(evaluation(0.58))
    assert not watch.paused


def test_a_pause_ends_also_when_the_score_does_not_come_back_and_the_lower_one_is_the_reference_then() -> None:
    watch = DriftWatch()
    assert watched([0.6, 0.3, 0.3], [0.5] * 3, watch)[-1]
    said = [watch.add_evaluation(evaluation(0.3)) for _ in range(LONGEST_PAUSE)]
    assert [bool(each) for each in said] == [False] * (LONGEST_PAUSE - 1) + [True]
    assert "so the cause may be our own" in said[-1]
    assert watched([0.3] * 6, [0.5] * 6, watch) == [False] * 6


def test_without_scores_by_question_the_errors_of_both_evaluations_count() -> None:
    for score, paused in ((0.45, False), (0.2, True)):
        watch = DriftWatch()
        for each in (0.6, score, score):
            watch.add_rewards([[0.5] * 8])
            watch.add_evaluation(evaluation(each, scores=False))
        assert watch.paused is paused


def test_a_policy_that_only_fluctuates_is_paused_hardly_ever() -> None:
    """Questions answered by chance, independently each time: worse than any real policy."""
    rng, pauses = random.Random(0), 0
    for _ in range(200):
        watch, before = DriftWatch(), False
        for _ in range(50):
            values = [float(rng.random() < 0.6) for _ in range(QUESTIONS)]
            watch.add_rewards([[0.5] * 8])
            watch.add_evaluation(
                Evaluation(
                    {"all": sum(values) / QUESTIONS},
                    {},
                    1,
                    errors={"all": standard_error(values)},
                    scores={str(index): value for index, value in enumerate(values)},
                )
            )
            pauses += watch.paused and not before
            before = watch.paused
    assert pauses <= 200 * 50 / 500


def test_a_resumed_peer_goes_on_where_it_was() -> None:
    for count in range(1, COMPARED + 4):
        scores = [0.6, 0.55, 0.3, 0.3, 0.3, 0.3, 0.3, 0.3][:count]
        watch, again = DriftWatch(), DriftWatch()
        watched(scores, [0.5] * count, watch)
        watch.add_rewards([[0.25, 0.75]])
        again.load_state_dict(json.loads(json.dumps(watch.state_dict(), allow_nan=False)))
        assert again.state_dict() == watch.state_dict()
        assert watched([0.3] * 3, [0.5] * 3, watch) == watched([0.3] * 3, [0.5] * 3, again)
