"""External sampling, and the assignment of roles."""

from __future__ import annotations

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarmgame import GroupKey
from swarmgame.game.external_sampling import STRATEGIES, ExternalSamplingPolicy, has_nonzero_advantage, select_external
from swarmgame.game.roles import Role, RoleManager

keys = st.builds(GroupKey, st.integers(7, 10), st.just(0), st.sampled_from("abcde"), st.integers(0, 30).map(str))
groups = st.lists(st.sampled_from([0.0, 0.5, 1.0, math.nan]), min_size=2, max_size=4)


@given(
    st.dictionaries(keys, groups, max_size=30),
    st.sampled_from(sorted(STRATEGIES)),
    st.integers(0, 10),
    st.integers(1, 4),
    st.integers(0, 2),
    st.integers(0, 9),
)
def test_a_selection_keeps_its_bounds_and_does_not_depend_on_arrival(
    rewards: dict[GroupKey, list[float]], strategy: str, external: int, cap: int, staleness: int, seed: int
) -> None:
    policy = ExternalSamplingPolicy(external, strategy, cap, staleness)
    chosen = select_external(rewards, rewards, policy, round=10, seed=seed)
    shuffled = list(rewards)
    random.Random(seed).shuffle(shuffled)
    assert chosen == select_external(shuffled, rewards, policy, round=10, seed=seed)
    assert len(chosen) == len(set(chosen)) <= external
    assert all(10 - key.round <= staleness for key in chosen)
    assert all(sum(key.peer == peer for key in chosen) <= cap for peer in "abcde")
    if strategy == "nonzero-advantage":
        assert all(has_nonzero_advantage(rewards[key]) for key in chosen)


def test_top_score_takes_the_best_group_and_nonzero_advantage_skips_groups_of_equal_rewards() -> None:
    rewards = {
        GroupKey(0, 0, peer, "q"): values
        for peer, values in {"a": [1.0, 1.0], "b": [0.0, 1.0], "c": [0.0, 0.0]}.items()
    }
    best = select_external(rewards, rewards, ExternalSamplingPolicy(1, "top-score"), round=0, seed=0)
    informative = select_external(rewards, rewards, ExternalSamplingPolicy(3, "nonzero-advantage"), round=0, seed=0)
    assert [key.peer for key in best] == ["a"]
    assert [key.peer for key in informative] == ["b"]


def test_a_late_rollout_is_usable_for_one_round_and_then_refused() -> None:
    key = GroupKey(4, 0, "b", "q")
    policy = ExternalSamplingPolicy(4, max_staleness=1)
    assert select_external([key], {key: [0.0, 1.0]}, policy, round=5, seed=0) == (key,)
    assert select_external([key], {key: [0.0, 1.0]}, policy, round=6, seed=0) == ()


@pytest.mark.parametrize(
    ("roles", "size", "expected"),
    [
        ([], 3, ["", "", ""]),
        ([Role("solver")], 3, ["solver"] * 3),
        ([Role("white", count=1), Role("black", count=1)], 2, ["white", "black"]),
        ([Role("proposer", share=0.25), Role("solver")], 4, ["proposer", "solver", "solver", "solver"]),
        ([Role("proposer", share=0.25), Role("solver")], 1, ["proposer"]),
        ([Role("judge", count=2), Role("solver", share=1.0)], 1, ["judge"]),
        (
            [Role("judge", count=1), Role("solver", share=0.5), Role("proposer")],
            6,
            ["judge", "solver", "solver", "solver", "proposer", "proposer"],
        ),
    ],
)
def test_roles_follow_from_the_sorted_membership(roles: list[Role], size: int, expected: list[str]) -> None:
    members = [f"peer-{number}" for number in range(size)]
    shuffled = members[::-1]
    assert list(RoleManager(roles).assign(shuffled).values()) == expected
    assert list(RoleManager(roles).assign(shuffled)) == members
