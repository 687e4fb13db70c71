"""How much of an update rollouts of other peers may be that our own policy seldom samples."""

from __future__ import annotations

import json
from collections.abc import Sequence

import numpy as np
import pytest

from swarmgame.trainer.rarity import LEAST_ROLLOUTS, UNSEEN, UPDATES, Rarity, RarityFactors, RatedRollout


def drawn(policy: Sequence[float], count: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).choice(len(policy), count, p=policy)


def policy(scale: float, seed: int = 0) -> np.ndarray:
    logits = np.random.default_rng(seed).normal(size=50) * scale
    return np.exp(logits) / np.exp(logits).sum()


def rated(least: float, signal: float = 1.0, weight: float = 1.0, tokens: Sequence[int] = ()) -> RatedRollout:
    return RatedRollout(least, signal, weight, tokens)


def of_token(token: int, ours: np.ndarray, weight: float = 1.0) -> RatedRollout:
    return RatedRollout.of([int(token)], [float(np.log(ours[token]))], 1.0, weight)


def own_of(ours: np.ndarray, count: int = 256, seed: int = 1) -> list[RatedRollout]:
    return [of_token(token, ours) for token in drawn(ours, count, seed)]


def sent_by(theirs: np.ndarray, ours: np.ndarray, count: int = 256, seed: int = 2) -> list[RatedRollout]:
    """What an honest peer of another policy sends, with the weights that its claims give."""
    tokens = drawn(theirs, count, seed)
    return [of_token(token, ours, min(1.0, ours[token] / theirs[token])) for token in tokens]


def factors_for(factors: RarityFactors | None, rollouts: Sequence[RatedRollout]) -> np.ndarray:
    assert factors is not None
    of_levels = factors.factors[np.searchsorted(factors.levels, [each.least for each in rollouts])]
    of_tokens = [min((factors.tokens.get(token, 1.0) for token in each.unlikely), default=1.0) for each in rollouts]
    return np.minimum(of_levels, of_tokens)


def kept(factors: RarityFactors | None, rollouts: Sequence[RatedRollout]) -> float:
    """The share of a signal that is left."""
    signals = np.array([each.signal * each.weight for each in rollouts])
    return float((factors_for(factors, rollouts) * signals).sum() / signals.sum())


@pytest.mark.parametrize("scale", [0.5, 1.5, 4.0])
@pytest.mark.parametrize("other", [0, 1, 2], ids=["the same policy", "another", "a third"])
def test_a_peer_that_samples_what_it_sends_keeps_its_signal(scale: float, other: int) -> None:
    ours, theirs = policy(scale), policy(scale, other)
    rarity = Rarity()
    rarity.add_own(own_of(ours))
    rarity.add_others(sent_by(theirs, ours))
    assert kept(rarity.factors, sent_by(theirs, ours, seed=3)) > 0.85


@pytest.mark.parametrize("part", [1.0, 0.5, 0.1])
def test_a_rare_text_has_the_share_that_it_has_of_our_own_however_often_it_is_sent(part: float) -> None:
    ours = policy(1.5)
    rare = int(np.argsort(ours)[5])
    rarity = Rarity()
    rarity.add_own(own_of(ours))
    sent = [*sent_by(ours, ours, 200), *[of_token(rare, ours)] * round(200 * part)]
    rarity.add_others(sent)
    found = factors_for(rarity.factors, sent)
    is_text = np.array([rare in each.unlikely for each in sent])
    own = sum(rare in each.unlikely for each in own_of(ours)) + UNSEEN
    assert (found * is_text).sum() / len(sent) <= own / 256 * 1.3
    assert found[~is_text].mean() > 0.8 - part / 4, "what is not rare keeps most of its signal"


def test_a_token_that_is_likely_where_it_stands_is_not_compared() -> None:
    rarity = Rarity()
    rarity.add_own([RatedRollout.of([1, 2], [-0.1, -0.2], 1.0)] * 50)
    rarity.add_others([RatedRollout.of([1, 7], [-0.1, -0.3], 1.0)] * 50)  # the answer to another question
    assert rarity.factors is not None
    assert rarity.factors.tokens == {}
    rarity.add_others([RatedRollout.of([1, 7], [-0.1, -5.0], 1.0)] * 50)
    assert rarity.factors.tokens == {7: pytest.approx(UNSEEN / (50 + UNSEEN) * 2)}


def test_rollouts_that_are_rarer_than_all_of_ours_have_next_to_nothing() -> None:
    rarity = Rarity()
    rarity.add_own([rated(-2.0)] * 63)
    rarity.add_others([rated(-2.0, 2.0), rated(-9.0, 2.0)])
    found = factors_for(rarity.factors, [rated(-9.0), rated(-2.0), rated(-1.0)])
    assert found.tolist() == pytest.approx([2 / 64, 1.0, 1.0])


def test_before_others_were_seen_the_share_of_our_own_is_the_factor() -> None:
    rarity = Rarity()
    rarity.add_own([rated(-float(each)) for each in range(1, 10)])
    found = factors_for(rarity.factors, [rated(least) for least in (-20.0, -9.0, -5.0, -1.0, -0.5)])
    assert found.tolist() == pytest.approx([0.2, 0.2, 0.6, 1.0, 1.0])


def test_nothing_is_bounded_without_own_rollouts_that_have_a_signal() -> None:
    rarity = Rarity()
    rarity.add_others([rated(-9.0)] * 20)
    rarity.add_own([rated(-1.0, 0.0)] * 50)
    rarity.add_own([rated(-1.0)] * (LEAST_ROLLOUTS - 1))
    assert rarity.factors is None
    rarity.add_own([rated(-1.0)])
    assert rarity.factors is not None


def test_it_forgets_old_updates_and_comes_back_exactly() -> None:
    rarity = Rarity()
    rarity.add_own([rated(-5.0, tokens=(3,))] * 20)
    rarity.add_others([rated(-7.0, tokens=(3, 4))] * 20)
    first = rarity.factors
    again = Rarity(json.loads(json.dumps(rarity.state_dict())))
    assert first is not None
    assert again.factors is not None
    assert again.factors.levels.tolist() == first.levels.tolist()
    assert again.factors.factors.tolist() == first.factors.tolist()
    assert again.factors.tokens == first.tokens != {}
    for _ in range(UPDATES):
        rarity.add_own([rated(-1.0)] * 20)
        rarity.add_others([rated(-1.0)] * 20)
    assert rarity.factors is not None
    assert rarity.factors.levels.tolist() == [-1.0]
