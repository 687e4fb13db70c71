"""Generation on one rank: how prompts are cut into batches, and what happens when a device has no memory for one."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import pytest
import torch

from swarmgame.errors import InvalidManifest, Temporary
from swarmgame.game.ranks import OneRank
from swarmgame.inference.engines import make_sampler
from swarmgame.inference.sampler import Sampled, SamplingParams, uniforms
from swarmgame.trainer.grpo.generation import Generation

PARAMS = SamplingParams(3)


class SmallDevice:
    """A sampler that says its numbers, on a device with room for so many rows; what it holds between calls takes some
    of it.
    """

    exact = True
    uses_model = True

    def __init__(self, room: int, held: int = 0) -> None:
        self.room, self.held = room, held
        self.batches: list[int] = []

    def sample(
        self,
        prompts: Sequence[Sequence[int]],
        n: int,
        params: SamplingParams,
        seed: int,
        *,
        first_row: int = 0,
        budgets: Sequence[int] | None = None,
    ) -> list[list[Sampled]]:
        numbers = uniforms(len(prompts) * n, params, seed, first_row)
        if len(prompts) * n > self.room - self.held:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        self.batches.append(len(prompts))
        completions = [
            Sampled(tuple(int(1000 * number) for number in row), (0.0,) * len(row), stopped=False) for row in numbers
        ]
        return [completions[start : start + n] for start in range(0, len(completions), n)]

    def update_weights(self, version: int) -> None:
        self.version = version

    def limit(self, rows: int) -> int:
        return rows

    def metrics(self) -> dict[str, float]:
        return {}

    def close(self) -> None:
        self.held = 0

    def release(self) -> bool:
        held, self.held = self.held, 0
        return bool(held)


def generation(sampler: SmallDevice, rollouts_per_batch: int) -> Generation:
    return Generation(sampler, OneRank(), rollouts_per_batch=rollouts_per_batch)


def prompts(count: int) -> list[tuple[int, ...]]:
    return [(index,) for index in range(count)]


@pytest.mark.parametrize(
    ("count", "most", "batches"),
    [(8, 512, [8]), (100, 512, [50, 50]), (101, 512, [51, 50]), (3, 8, [1, 1, 1]), (3, 1, [1, 1, 1])],
)
def test_batches_are_as_even_as_can_be_so_that_one_shape_serves_them_all(
    count: int, most: int, batches: list[int]
) -> None:
    sampler = SmallDevice(10_000)
    assert len(generation(sampler, most)(prompts(count), 8, PARAMS, seed=1)) == count
    assert sampler.batches == batches


def test_smaller_batches_sample_the_same_and_stay_small(caplog: pytest.LogCaptureFixture) -> None:
    expected = generation(SmallDevice(10_000), 512)(prompts(13), 4, PARAMS, seed=7)
    sampler = SmallDevice(20)
    pressed = generation(sampler, 512)
    with caplog.at_level(logging.WARNING):
        assert pressed(prompts(13), 4, PARAMS, seed=7) == expected
    assert max(sampler.batches) <= 5
    warnings = len(caplog.records)
    assert warnings >= 1
    assert pressed(prompts(13), 4, PARAMS, seed=7) == expected
    assert len(caplog.records) == warnings


def test_what_a_sampler_holds_is_given_back_before_a_single_prompt_is_given_up() -> None:
    assert generation(SmallDevice(8, held=4), 512)(prompts(1), 8, PARAMS, seed=1)
    with pytest.raises(Temporary, match="no memory for 8 rollouts of 3 tokens of one prompt"):
        generation(SmallDevice(7), 512)(prompts(4), 8, PARAMS, seed=1)


class WaitingRooms(SmallDevice):
    """A device whose sampler lets rows wait, so that a call may request eight times as many; it has no memory for two
    prompts, however few rows.
    """

    def limit(self, rows: int) -> int:
        return 8 * rows

    def sample(
        self, prompts: Sequence[Sequence[int]], n: int, params: SamplingParams, seed: int, **given: Any
    ) -> list[list[Sampled]]:
        if len(prompts) > self.room:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        room, self.room = self.room, 10_000
        try:
            return super().sample(prompts, n, params, seed, **given)
        finally:
            self.room = room


@pytest.mark.parametrize("n", [1, 2, 8])
def test_fewer_prompts_are_sampled_where_fewer_rows_do_not_help_and_none_is_an_error(n: int) -> None:
    expected = generation(SmallDevice(10_000), 512)(prompts(20), n, PARAMS, seed=7)
    assert generation(WaitingRooms(3), 512)(prompts(20), n, PARAMS, seed=7) == expected
    with pytest.raises(Temporary, match=f"no memory for {n} rollouts"):
        generation(WaitingRooms(0), 512)(prompts(20), n, PARAMS, seed=7)


def test_graphs_without_a_cuda_device_are_an_error_of_the_manifest() -> None:
    class Policy:
        model = torch.nn.Linear(1, 1)
        eos_token_ids = (1,)
        pad_token_id = 0

    Policy.model.device = torch.device("cpu")  # type: ignore[assignment]
    with pytest.raises(InvalidManifest, match=r"spec\.game\.trainer\.with\.sampler.*cudagraph.*cpu"):
        make_sampler(Policy(), "cudagraph", longest=8)  # type: ignore[arg-type]
