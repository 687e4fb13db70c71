"""The engine's scheduling: lanes are refilled and kept busy, steps are few launches, memory is kept and given back. On
any device.
"""

from __future__ import annotations

import logging
import types

import pytest
import torch
from tiny_models import EOS, PAD, PROMPTS, completions, tiny
from torch.utils._python_dispatch import TorchDispatchMode

from swarmgame.inference import arena as arenas
from swarmgame.inference import graphs, ops
from swarmgame.inference.arena import Arena
from swarmgame.inference.continuous_batching import EngineSampler
from swarmgame.inference.eager import EagerSampler
from swarmgame.inference.sampler import SamplingParams


def token_ids(groups):
    return [completion.token_ids for completion in completions(groups)]


def limited(model, lanes, eos=(EOS,)):
    sampler = EngineSampler(model, eos, PAD)
    sampler.limit(lanes)
    return sampler


@pytest.mark.parametrize("lanes", [1, 2, 3, 5, 8, 64])
@pytest.mark.parametrize(
    "params", [SamplingParams(30), SamplingParams(30, temperature=1.3, min_new_tokens=4), SamplingParams(30, top_k=4)]
)
def test_completions_do_not_depend_on_the_number_of_lanes(lanes, params):
    model = tiny()
    expected = EagerSampler(model, (EOS,), PAD).sample(PROMPTS, 6, params, 8)
    assert token_ids(limited(model, lanes).sample(PROMPTS, 6, params, 8)) == token_ids(expected)


def test_rows_that_wait_get_the_lanes_of_finished_ones_and_the_last_go_on_with_fewer(monkeypatch):
    counts = []
    step = Arena._compute
    monkeypatch.setattr(Arena, "_compute", lambda self, lanes: counts.append(lanes) or step(self, lanes))
    params, budgets = SamplingParams(64, min_new_tokens=64), [64, 3, 17, 40]
    model = tiny()
    sampled = limited(model, 8).sample(PROMPTS, 10, params, 1, budgets=budgets)
    assert [len(completion.token_ids) for completion in completions(sampled)] == [
        budget for budget in budgets for _ in range(10)
    ]
    assert token_ids(sampled) == token_ids(
        EagerSampler(model, (EOS,), PAD).sample(PROMPTS, 10, params, 1, budgets=budgets)
    )
    assert counts[0] == 8
    assert counts == sorted(counts, reverse=True)
    assert len(counts) < 10 * (sum(budgets) / 8 + 64)


def test_uneven_outputs_keep_the_lanes_busy(monkeypatch):
    """Outputs of 100 to 1,024 tokens, eight times as many as lanes, at an eighth of their length: lanes hold a
    completion in over 90 % of steps.
    """
    monkeypatch.setattr(arenas, "SYNC_EVERY", 2)
    lengths = torch.randint(12, 129, (128,), generator=torch.Generator().manual_seed(0)).tolist()
    model = tiny(max_position_embeddings=256)
    sampler = limited(model, 16, eos=())
    sampler.sample([[3, 4 + index % 9] for index in range(128)], 1, SamplingParams(128), 1, budgets=lengths)
    assert sampler.occupancy.tokens == sum(lengths) - len(lengths)  # the first token of each comes from its prompt
    assert sampler.occupancy.share > 0.9


def test_a_step_is_eight_launches_a_layer_and_eleven_more():
    """Count the launches on a CUDA device: PyTorch's operations that are not views, and each kernel of ours as one."""
    model, launches = tiny(num_hidden_layers=5), Launches()
    sampler = EngineSampler(model, (EOS,), PAD, kernels=launches.module())
    sampler.sample([[3, 4]], 4, SamplingParams(4, min_new_tokens=4), 1)
    [arena] = sampler._arenas.values()
    launches.names.clear()
    with launches, torch.inference_mode():
        arena._compute(4)
    assert len(launches.names) <= 8 * 5 + 11, launches.names


class Launches(TorchDispatchMode):
    """Counts launches, and stands in for the module of kernels."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        inputs = {arg.untyped_storage().data_ptr() for arg in args if isinstance(arg, torch.Tensor)}
        views = (
            isinstance(result, torch.Tensor)
            and result.untyped_storage().data_ptr() in inputs
            and not func._schema.is_mutable
        )
        if not views and "empty" not in func.__name__ and "split" not in func.__name__:
            self.names.append(func.__name__)
        return result

    def module(self):
        def counted(name, function):
            def call(*args, **kwargs):
                self.names.append(name)
                with torch.utils._python_dispatch._disable_current_modes():
                    return function(*args, **kwargs)

            return call

        names = (
            "add_rms_norm",
            "split_linear",
            "silu_mul",
            "decode_attention",
            "prefill_rotary",
            "sample_tokens",
            "advance",
        )
        module = types.ModuleType("counted_kernels")
        for name in names:
            setattr(module, name, counted(name, getattr(ops, name)))
        return module


def test_memory_is_kept_for_the_last_shapes_until_it_is_released_or_the_weights_have_moved():
    model, params = tiny(), SamplingParams(8)
    sampler = EngineSampler(model, (EOS,), PAD)
    first = sampler.sample(PROMPTS, 4, params, 5)
    kept = dict(sampler._arenas)
    assert sampler.sample(PROMPTS, 4, params, 5) == first
    assert dict(sampler._arenas) == kept
    for tokens in range(9, 14):
        sampler.sample(PROMPTS, 4, SamplingParams(tokens), 5)
    assert [shape.params.max_new_tokens for shape in sampler._arenas] == [10, 11, 12, 13]
    assert sampler.release()
    assert not sampler.release()
    assert sampler.sample(PROMPTS, 4, params, 5) == first
    model.model.layers[0].mlp.down_proj.weight.data = model.model.layers[0].mlp.down_proj.weight.data.clone().zero_()
    moved = sampler.sample(PROMPTS, 4, params, 5)
    assert (
        token_ids(moved)
        == token_ids(EagerSampler(model, (EOS,), PAD).sample(PROMPTS, 4, params, 5))
        != token_ids(first)
    )


def test_memory_that_is_large_enough_serves_smaller_calls():
    model, params = tiny(), SamplingParams(12)
    sampler = EngineSampler(model, (EOS,), PAD)
    eager = EagerSampler(model, (EOS,), PAD)
    prompts = [[3 + index % 7] * (1 + index) for index in range(12)]
    sampler.sample(prompts, 8, params, 1)
    [arena] = sampler._arenas.values()
    for count, n in ((12, 8), (2, 8), (5, 3), (1, 1)):
        assert token_ids(sampler.sample(prompts[:count], n, params, 2)) == token_ids(
            eager.sample(prompts[:count], n, params, 2)
        )
    assert list(sampler._arenas.values()) == [arena]
    sampler.sample(prompts, 30, params, 1)
    assert len(sampler._arenas) == 2


def test_an_update_of_the_weights_in_place_is_seen_by_the_next_call():
    model, params = tiny(), SamplingParams(12)
    sampler = EngineSampler(model, (EOS,), PAD)
    before = sampler.sample(PROMPTS, 6, params, 5)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(0.9)
    after = sampler.sample(PROMPTS, 6, params, 5)
    assert (
        token_ids(after)
        == token_ids(EagerSampler(model, (EOS,), PAD).sample(PROMPTS, 6, params, 5))
        != token_ids(before)
    )


def test_what_cannot_be_captured_runs_without_and_one_warning_is_logged(monkeypatch, caplog):
    def refused(*_, **__):
        raise RuntimeError("operation not permitted when stream is capturing\nand more")

    monkeypatch.setattr(torch.cuda, "CUDAGraph", refused)
    pool = graphs.GraphPool(capture=True)
    graph = graphs.Graph("a step of 4 lanes", lambda given: given + 1, pool, torch.zeros(2))
    with caplog.at_level(logging.WARNING):
        results = [graph(torch.full((2,), float(call))) for call in range(4)]
    assert [result.tolist() for result in results] == [[call + 1.0] * 2 for call in range(4)]
    assert [record.message for record in caplog.records] == [
        "a step of 4 lanes could not be captured as a graph and runs operation by operation: operation not permitted "
        "when "
        "stream is capturing"
    ]


@pytest.mark.parametrize(
    ("size", "rounded"), [(1, 64), (64, 64), (65, 128), (512, 512), (513, 640), (1024, 1024), (1025, 1280)]
)
def test_sizes_are_rounded_to_few_values(size, rounded):
    assert arenas.bucket(size) == rounded


def test_a_saved_model_holds_joined_projections_as_they_were(tmp_path):
    model = tiny()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    EngineSampler(model, (EOS,), PAD).sample(PROMPTS, 1, SamplingParams(2), 1)
    model.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path).state_dict()
    assert loaded.keys() == before.keys()
    assert all(torch.equal(loaded[name], tensor.cpu()) for name, tensor in before.items())
