"""How the processor time of scoring is shared by authors."""

from __future__ import annotations

import pytest

from swarmgame.game.protocol import ClosedBy, Collected
from swarmgame.game.remote_work import KNOWN, SHARE, RemoteWork
from swarmgame.sandbox.author_budgets import TOTAL, AuthorBudgets


def test_an_author_has_its_budget_once_a_round() -> None:
    budgets = AuthorBudgets(10.0)
    budgets.begin(1)
    assert budgets.allow("a", 1).seconds == 10.0
    budgets.spend("a", 7.5)
    budgets.begin(1)
    assert budgets.allow("a", 1).seconds == 2.5
    budgets.spend("a", 3.0)
    assert budgets.allow("a", 1).seconds == 0.0
    budgets.begin(2)
    assert budgets.allow("a", 1).seconds == 10.0


def test_all_authors_together_have_four_budgets_however_many_they_are() -> None:
    budgets = AuthorBudgets(10.0)
    budgets.begin(0)
    given = []
    for waiting in range(100, 0, -1):
        given.append(budgets.allow(f"liar-{waiting}", waiting).seconds)
        budgets.spend(f"liar-{waiting}", given[-1])
    assert sum(given) == pytest.approx(TOTAL * 10.0)
    assert min(given) == pytest.approx(TOTAL * 10.0 / 100), "the last one has an equal share"


def test_what_one_author_leaves_is_for_those_after_it() -> None:
    budgets = AuthorBudgets(10.0)
    budgets.begin(0)
    assert budgets.allow("a", 8).seconds == 5.0
    budgets.spend("a", 0.5)
    assert budgets.allow("b", 7).seconds == pytest.approx(39.5 / 7)


def test_authors_that_nobody_vouches_for_have_a_share_of_the_round_whatever_one_may_take() -> None:
    work = RemoteWork()
    standings = {"friend": "anchor", **{f"stranger-{number}": "probation" for number in range(40)}}
    for number in range(KNOWN):
        work.bounded(Collected((), (), (), ClosedBy.QUORUM, standings=standings), None, round=number, stages=1)
        work.round_finished(8, {"generate": 1.0, "train": 1.0})
    budgets = AuthorBudgets(16.0, work)
    budgets.begin(KNOWN)
    assert budgets.allow("friend", 1).seconds == 16.0
    budgets.spend("friend", 10.0)
    given = []
    for waiting in range(40, 0, -1):
        given.append(budgets.allow(f"stranger-{waiting - 1}", waiting).seconds)
        budgets.spend(f"stranger-{waiting - 1}", given[-1])
    assert sum(given) == pytest.approx(SHARE * 2.0)
    assert min(given) == pytest.approx(SHARE * 2.0 / 40)
    assert AuthorBudgets(16.0).allow("stranger-0", 1).seconds == 16.0, "without the bound"
