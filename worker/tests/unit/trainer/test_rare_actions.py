"""Actions of other peers that our own policy seldom takes: bounded together by what they are of our own updates."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
import torch

from swarmgame.game.state import GroupKey
from swarmgame.trainer.action_bounds import Action, ActionBounds

USUAL, RARE = math.log(0.98), math.log(0.02)


def actions_of(peer: str, taken: Sequence[int], *, advantage: float = 1.0) -> list[Action]:
    """Actions 0, with a probability of 0.98 under our policy, and 1, with 0.02; claims are true."""
    found = []
    for at, action in enumerate(taken):
        logprob = RARE if action else USUAL
        own = peer == "me"
        claim = None if own else logprob
        key = GroupKey(round=0, stage=0, peer=peer, question_id=f"question {at}")
        found.append(Action(key, 0, torch.ones(1), action, advantage, claim, sampled_logprob=logprob if own else None))
    return found


def update(bounds: ActionBounds, actions: list[Action]) -> dict[tuple[str, int], float]:
    """Return the weight that the actions of each peer had, by action, each of an update's actions together."""
    limited = bounds.limit(actions)
    logprobs_B = torch.tensor([RARE if action.action else USUAL for action in limited])
    found: dict[tuple[str, int], float] = {}
    for action, row in zip(limited, bounds.compare(limited, logprobs_B).tolist(), strict=True):
        use = bounds.use_of(action, row)
        key = (action.group.peer, action.action)
        found[key] = found.get(key, 0.0) + use.weight
    bounds.end_update()
    return found


def test_a_peer_that_sends_a_rare_action_half_of_the_time_gets_its_own_share_of_it() -> None:
    bounds = ActionBounds(0.5, 0.5, 1.0)
    own = actions_of("me", [1] + [0] * 49)
    sent = actions_of("other", [1, 0] * 10)
    for _ in range(4):
        found = update(bounds, [*own, *sent])
    rare, usual = found["other", 1], found["other", 0]
    assert found["me", 1] == 1
    assert rare / (rare + usual) < 0.1, found


def test_a_peer_that_samples_as_we_do_is_not_scaled_down_for_its_rare_actions() -> None:
    bounds = ActionBounds(0.5, 0.5, 1.0)
    drawn = [1] + [0] * 49
    for _ in range(4):
        found = update(bounds, [*actions_of("me", drawn), *actions_of("other", drawn)])
    # A third of the update is the share of one other peer. 1 - p of the rare action counts as that of our mean.
    assert found["other", 0] / 49 == pytest.approx(1 / 3, rel=0.05)
    assert found["other", 1] == pytest.approx(1 / 3 * 0.04, rel=0.05)
    factors = bounds._rarity.factors
    assert factors is not None
    assert min(factors.factors) == 1


def test_without_a_bound_of_influence_and_before_enough_own_actions_nothing_is_scaled() -> None:
    free, new = ActionBounds(1.0, 0.5, 1.0), ActionBounds(0.5, 1.0, 1.0)
    sent = actions_of("other", [1] * 3)
    for _ in range(3):
        found = update(free, [*actions_of("me", [0] * 50), *sent])
    assert found["other", 1] == pytest.approx(3)
    assert new._rarity.factors is None


def test_the_bound_goes_on_after_a_resume() -> None:
    first, again = ActionBounds(0.5, 0.5, 1.0), ActionBounds(0.5, 0.5, 1.0)
    actions = [*actions_of("me", [1] + [0] * 49), *actions_of("other", [1, 0] * 10)]
    update(first, actions)
    again.load_state_dict(first.state_dict())
    assert update(first, actions) == update(again, actions)
    earlier = {name: value for name, value in first.state_dict().items() if name not in ("rarity", "surprise")}
    ActionBounds(0.5, 0.5, 1.0).load_state_dict(earlier)
