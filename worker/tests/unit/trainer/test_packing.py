"""The layout of a packed micro-batch: nothing is lost, nothing stands twice, and attention sees what the plain pass
sees.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from swarmgame.trainer.grpo.batch import micro_batches
from swarmgame.trainer.grpo.packed_attention import visible_tokens
from swarmgame.trainer.grpo.packing import PackedLayout, pack, packed_tokens
from swarmgame.trainer.grpo.samples import TrainingSample

Ids = tuple[int, ...]
IDS = st.lists(st.integers(0, 3), min_size=1, max_size=5).map(tuple)
ROLLOUTS = st.lists(st.tuples(IDS, IDS), min_size=1, max_size=8)


def _mask(layout: PackedLayout) -> np.ndarray:
    return visible_tokens(
        *map(torch.from_numpy, (layout.key_index_K, layout.query_starts_S, layout.key_starts_S))
    ).numpy()


@given(ROLLOUTS)
def test_each_scored_token_sees_its_prompt_and_its_own_completion_so_far(rollouts: list[tuple[Ids, Ids]]) -> None:
    prompts, completions = zip(*rollouts, strict=True)
    layout = pack(prompts, completions)
    mask = _mask(layout)
    scored = 0
    for row, (prompt, completion) in enumerate(rollouts):
        for place, token in enumerate(completion):
            source = layout.source_N[scored]
            assert (layout.row_N[scored], layout.place_N[scored], layout.target_N[scored]) == (row, place, token)
            seen = np.flatnonzero(mask[source])
            assert tuple(layout.token_T[seen]) == (*prompt, *completion[:place])
            assert tuple(layout.position_T[seen]) == tuple(range(len(prompt) + place))
            scored += 1
    assert scored == len(layout.target_N)
    assert layout.shape == (len(rollouts), max(map(len, completions)))


@given(ROLLOUTS)
def test_distinct_prompts_stand_once_and_segments_cover_the_sequence(rollouts: list[tuple[Ids, Ids]]) -> None:
    prompts, completions = zip(*rollouts, strict=True)
    layout = pack(prompts, completions)
    assert len(layout.token_T) == len(layout.position_T) == packed_tokens(prompts, completions) - len(rollouts)
    queries, keys = np.diff(layout.query_starts_S), np.diff(layout.key_starts_S)
    assert layout.query_starts_S[-1] == len(layout.token_T)
    assert layout.key_starts_S[-1] == len(layout.key_index_K)
    assert queries.min() > 0, "a kernel need not know segments without queries"
    assert (keys >= queries).all()
    assert (layout.longest_query, layout.longest_key) == (queries.max(), keys.max())


@given(ROLLOUTS, st.integers(1, 30))
def test_packed_micro_batches_keep_to_the_budget_and_lose_no_row(rollouts: list[tuple[Ids, Ids]], budget: int) -> None:
    rows = [
        TrainingSample(prompt, completion, float(index), truncated=False)
        for index, (prompt, completion) in enumerate(rollouts)
    ]
    batches = micro_batches(rows, budget, packed=True)
    assert sorted(row.advantage for batch in batches for row in batch) == [row.advantage for row in rows]
    for batch in batches:
        tokens = packed_tokens([row.prompt for row in batch], [row.completion for row in batch])
        assert tokens <= budget or len(batch) == 1


@pytest.mark.parametrize(
    ("prompts", "completions", "message"),
    [
        ([], [], "at least one"),
        ([[1]], [[1], [2]], "1 prompts but 2 completions"),
        ([[1]], [[]], "empty"),
        ([[]], [[1]], "empty"),
    ],
)
def test_impossible_batches_are_refused(prompts: list[list[int]], completions: list[list[int]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        pack(prompts, completions)
