"""Whether a policy is sharded: the rule of `auto`, what is refused, and what is doubtful."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from language_rounds import contribution_of, round_of, scored, state_of, trainer
from torch import nn

from swarmgame.errors import BadUsage, InvalidManifest
from swarmgame.game.components import ComponentContext
from swarmgame.game.ranks import OneRank
from swarmgame.observability.run_directory import RunDirectory
from swarmgame.trainer.grpo.config import GRPOConfig, Lora
from swarmgame.trainer.grpo.sharding import bytes_of_training, doubts_of, passes_of_others, shall_shard
from swarmgame.trainer.grpo.trainer import GRPOTrainer

VLLM = {"engine": "vllm", "url": "http://127.0.0.1:1"}
PARAMETERS = 10 * 10 + 10


@dataclass
class Answers(OneRank):
    """Several ranks, of which the others answer a gather with these bytes."""

    others: tuple[bytes, ...] = (b"\x01",)

    @property
    def size(self) -> int:  # type: ignore[override]
        return 1 + len(self.others)

    def gather(self, payload: bytes) -> list[bytes]:
        return [payload, *self.others]


def context(device: str = "cuda:0", *others: bytes) -> ComponentContext:
    return ComponentContext(device=device, ranks=Answers(others or (b"\x01",)))


def model(dtype: torch.dtype = torch.bfloat16) -> nn.Module:
    return nn.Linear(10, 10).to(dtype)


@pytest.fixture
def memory(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Set the memory of every CUDA device, in bytes."""

    def set_to(size: float) -> None:
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: SimpleNamespace(total_memory=size))

    return set_to


@pytest.mark.parametrize(
    ("dtype", "adapters", "each"),
    [(torch.bfloat16, False, 24), (torch.float32, False, 20), (torch.bfloat16, True, 2), (torch.float32, True, 4)],
)
def test_the_memory_of_training_is_counted_per_parameter(dtype: torch.dtype, adapters: bool, each: int) -> None:
    assert bytes_of_training(model(dtype), adapters=adapters) == each * PARAMETERS


NEEDED = 24 * PARAMETERS / 0.7


@pytest.mark.parametrize(
    ("options", "device", "size", "expected"),
    [
        ({}, "cuda:0", NEEDED * 0.99, True),
        ({}, "cuda:0", NEEDED * 1.01, False),
        ({}, "cpu", 1, False),
        ({"sharding": "none"}, "cuda:0", 1, False),
        ({"sharding": "full"}, "cuda:0", NEEDED * 10, True),
        ({"sharding": "full"}, "cpu", NEEDED, True),
        ({"lora": Lora()}, "cuda:0", 1, False),
        ({"lora": Lora(), "sampler": VLLM}, "cuda:0", 1, True),
        ({"lora": Lora(), "sampler": VLLM}, "cuda:0", NEEDED, False),
    ],
)
def test_auto_shards_what_does_not_fit_one_cuda_device(
    options: dict[str, Any], device: str, size: float, expected: bool, memory: Any
) -> None:
    memory(size)
    assert shall_shard(GRPOConfig(**options), context(device), model()) is expected


def test_all_ranks_shard_where_one_of_them_has_less_memory(memory: Any) -> None:
    memory(NEEDED * 2)
    assert not shall_shard(GRPOConfig(), context("cuda:0", b"\x01", b"\x01"), model())
    assert shall_shard(GRPOConfig(), context("cuda:0", b"\x01", b"\x00"), model())


def test_a_peer_of_one_process_is_not_sharded_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    alone = replace(context(), ranks=OneRank())
    with caplog.at_level(logging.WARNING):
        assert not shall_shard(GRPOConfig(), alone, model())
        assert not caplog.text
        assert not shall_shard(GRPOConfig(sharding="full"), alone, model())
    assert "sharding: full has no effect: this peer has one process" in caplog.text


class Mixed(nn.Module):
    def __init__(self, **parameters: torch.Tensor) -> None:
        super().__init__()
        for name, tensor in parameters.items():
            self.register_parameter(name, nn.Parameter(tensor))


@pytest.mark.parametrize(
    ("made", "reason"),
    [
        (Mixed(a=torch.ones(3), b=torch.ones(3).bfloat16()), r"several types \(bfloat16, float32\)"),
        (Mixed(a=torch.ones(3), b=torch.tensor(1.0)), "parameters without dimensions"),
    ],
    ids=["types", "a number"],
)
def test_a_model_that_cannot_be_sharded_is_refused_by_full_and_kept_complete_by_auto(
    made: nn.Module, reason: str, memory: Any, caplog: pytest.LogCaptureFixture
) -> None:
    memory(1)
    with pytest.raises(InvalidManifest, match=reason) as caught:
        shall_shard(GRPOConfig(sharding="full"), context(), made)
    assert str(caught.value).startswith('spec.game.trainer.with.sharding is "full"; expected none')
    with caplog.at_level(logging.WARNING):
        assert not shall_shard(GRPOConfig(), context(), made)
    assert "not sharded" in caplog.text


@pytest.mark.parametrize(
    ("options", "processes", "expected"),
    [
        ({}, 1, []),
        ({"sharding": "full"}, None, []),
        ({"sharding": "full"}, 2, []),
        ({"sharding": "full"}, 1, ["sharding has no effect"]),
        ({"sharding": "full", "lora": Lora()}, 2, ["more memory than with none"]),
        ({"sharding": "full", "lora": Lora(), "sampler": VLLM}, 2, []),
    ],
)
def test_what_full_does_not_do_is_said_before_anything_starts(
    options: dict[str, Any], processes: int | None, expected: list[str]
) -> None:
    found = doubts_of(GRPOConfig(**options), processes)
    assert len(found) == len(expected)
    assert all(part in sentence for part, sentence in zip(expected, found, strict=True))


def test_a_rank_with_fewer_micro_batches_makes_up_for_them() -> None:
    assert passes_of_others(1, Answers((b"3", b"2"))) == 2
    assert passes_of_others(4, Answers((b"3",))) == 0


def test_a_micro_batch_without_memory_ends_a_sharded_run_with_a_number_to_set(cache: Path) -> None:
    learner = trainer(cache, tokens_per_micro_batch=512)
    state = state_of(round_of(), [contribution_of(learner, round_of())])

    def full(*_: Any) -> Any:
        raise torch.cuda.OutOfMemoryError

    learner.policy.score = full  # type: ignore[method-assign]
    learner.policy.is_sharded = True
    with pytest.raises(InvalidManifest, match="such as 256") as caught:
        learner.train(state, scored(state))
    assert str(caught.value).startswith("spec.game.trainer.with.tokensPerMicroBatch is 512; expected fewer")


def test_an_export_is_made_by_one_process(cache: Path) -> None:
    config, _ = GRPOTrainer.prepare_export(GRPOConfig(sharding="full"), trainer(cache).state_dict())
    assert config.sharding == "none"


def test_a_run_goes_on_with_another_sharding_but_not_with_another_rank_of_adapters(tmp_path: Path) -> None:
    directory = RunDirectory.of(tmp_path, "sharded")

    def manifest(use: str = "grpo", **options: Any) -> dict[str, Any]:
        return {"spec": {"game": {"trainer": {"use": use, "with": options}}}}

    directory.keep_manifest(manifest(sharding="full"))
    directory.refuse_other_game(manifest())
    directory.refuse_other_game(manifest(sharding="none"))
    with pytest.raises(BadUsage, match=r"lora"):
        directory.refuse_other_game(manifest(lora={"rank": 2}))
    with pytest.raises(BadUsage, match="use was 'grpo'"):
        directory.refuse_other_game(manifest("own:Trainer", sharding="full"))
