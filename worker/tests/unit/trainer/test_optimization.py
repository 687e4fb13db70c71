"""AdamW on float32 copies: micro-batches add up in float32, and a step that is not finite changes nothing."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch.nn import Parameter
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    Qwen2Config,
    Trainer,
)

from swarmgame.game.ranks import OneRank
from swarmgame.trainer.optimization import Optimization


def _parameters(dtype: torch.dtype) -> dict[str, Parameter]:
    generator = torch.Generator().manual_seed(0)
    return {
        name: Parameter(torch.randn(size, generator=generator).to(dtype)) for name, size in (("a", (5, 3)), ("b", (7,)))
    }


def _gradients(seed: int, dtype: torch.dtype, scale: float = 1.0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        name: (scale * torch.randn(size, generator=generator)).to(dtype) for name, size in (("a", (5, 3)), ("b", (7,)))
    }


def _accumulate(
    optimization: Optimization, parameters: dict[str, Parameter], gradients: dict[str, torch.Tensor]
) -> None:
    for name, gradient in gradients.items():
        grown = parameters[name].grad
        parameters[name].grad = gradient.clone() if grown is None else grown + gradient
    optimization.accumulate()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_step_is_that_of_adamw_on_float32_weights(dtype: torch.dtype) -> None:
    parameters, expected = (
        _parameters(dtype),
        {name: Parameter(value.detach().float()) for name, value in _parameters(dtype).items()},
    )
    ours = Optimization(parameters, weight_decay=0.1)
    groups = [{"params": [expected["a"]]}, {"params": [expected["b"]], "weight_decay": 0.0}]  # b is a bias
    theirs = torch.optim.AdamW(groups, lr=1e-2, weight_decay=0.1, fused=True)
    for step in range(3):
        batches = [_gradients(10 * step + index, dtype) for index in range(3)]
        for batch in batches:
            _accumulate(ours, parameters, batch)
        for name, parameter in expected.items():
            parameter.grad = batches[0][name].float()
            for batch in batches[1:]:
                parameter.grad += batch[name]
        norm = torch.nn.utils.clip_grad_norm_(expected.values(), 1.0)
        theirs.step()
        assert ours.step(1e-2, OneRank()) == float(norm)
        for name, parameter in expected.items():
            assert torch.equal(ours.state_dict()["weights"][name], parameter)
            assert torch.equal(parameters[name], parameter.to(dtype))
            assert parameters[name].grad is None


@pytest.mark.parametrize(
    ("config", "options"),
    [
        (Qwen2Config, {"num_key_value_heads": 2}),
        (LlamaConfig, {"attention_bias": True, "mlp_bias": True}),
        (GPT2Config, {"n_embd": 16, "n_layer": 1, "n_head": 2, "n_inner": 32}),
        (Gemma2Config, {"num_key_value_heads": 2, "head_dim": 8}),
        (GPTNeoXConfig, {}),
    ],
    ids=["qwen2", "llama with biases", "gpt2", "gemma2", "gpt-neox"],
)
def test_weights_decay_that_transformers_trainer_decays(config: Any, options: dict[str, Any]) -> None:
    shape = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = AutoModelForCausalLM.from_config(config(vocab_size=19, **shape | options))
    expected = set(Trainer.get_decay_parameter_names(None, model))
    for name, parameter in model.named_parameters():
        with torch.no_grad():
            parameter.fill_(1.0)
        optimization = Optimization({name: parameter}, weight_decay=0.5)
        parameter.grad = torch.zeros_like(parameter)
        optimization.step(0.1, OneRank())
        assert float(parameter.detach().max()) == pytest.approx(0.95 if name in expected else 1.0), name


def test_a_parameter_that_asks_for_no_decay_gets_none() -> None:
    parameter: Any = Parameter(torch.ones(2, 2))
    parameter._no_weight_decay = True
    optimization = Optimization({"A_log": parameter}, weight_decay=0.5)
    parameter.grad = torch.zeros_like(parameter)
    optimization.step(0.1, OneRank())
    assert torch.equal(parameter, torch.ones(2, 2))


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("steps", [0, 2])
def test_a_step_that_is_not_finite_changes_nothing(bad: float, steps: int) -> None:
    parameters = _parameters(torch.bfloat16)
    optimization = Optimization(parameters)
    for step in range(steps):
        _accumulate(optimization, parameters, _gradients(step, torch.bfloat16))
        assert optimization.step(1e-2, OneRank()) is not None
    before = optimization.state_dict()
    _accumulate(optimization, parameters, _gradients(9, torch.bfloat16, bad))
    assert optimization.step(1e-2, OneRank()) is None
    _assert_same(optimization.state_dict(), before)
    _accumulate(optimization, parameters, _gradients(10, torch.bfloat16))
    assert optimization.step(1e-2, OneRank()) is not None


def _assert_same(state: Any, expected: Any) -> None:
    if isinstance(expected, dict):
        assert state.keys() == expected.keys()
        for name, value in expected.items():
            _assert_same(state[name], value)
    else:
        assert torch.equal(state, expected)
