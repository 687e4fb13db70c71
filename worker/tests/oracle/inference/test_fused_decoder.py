"""The written-out decoder gives the logits of transformers' own forward, for every architecture that it takes."""

from __future__ import annotations

import pytest
import torch
from peft import LoraConfig, get_peft_model
from tiny_models import ARCHITECTURES, DEVICE, EOS, PAD, PROMPTS, VARIANTS, completions, tiny

from swarmgame.inference import decoder as decoder_module
from swarmgame.inference.architecture import Multipliers, describe, is_supported
from swarmgame.inference.continuous_batching import EngineSampler
from swarmgame.inference.decoder import SharedPromptDecoder
from swarmgame.inference.prefill import prefill
from swarmgame.inference.sampler import SamplingParams

EVERY = [*ARCHITECTURES, *VARIANTS]
STEPS = [[2, 9, 4, 4, 7], [11, 3, 3, 6, 2], [8, 8, 5, 12, 13], [9, 2, 7, 5, 6]]
"""Tokens that are fed behind each of `PROMPTS`."""


def model_of(architecture, **more):
    """A model of which all parameters are random, biases and the scales of norms included."""
    model = tiny(architecture, spread=0.3, **more)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator).to(DEVICE))
    return model


def adapted(model):
    """The model with adapters on half of its projections, which are not zero."""
    joined = hasattr(model.model.layers[0].self_attn, "qkv_proj")
    targets = ["qkv_proj", "gate_up_proj"] if joined else ["q_proj", "v_proj", "o_proj", "up_proj"]
    get_peft_model(model, LoraConfig(r=2, target_modules=targets, task_type="CAUSAL_LM", init_lora_weights=False))
    return model.eval()


@torch.no_grad()
def assert_steps_equal_the_model(model):
    """Feed all prompts and tokens at once, and each row alone to the model."""
    steps, width = len(STEPS[0]), max(map(len, PROMPTS))
    read = prefill(model, PROMPTS, width, PAD, room=steps)
    decoder = SharedPromptDecoder(model, read.cache, read.mask, 1, steps, width + steps)
    for step in range(steps):
        fed = torch.tensor([row[step] for row in STEPS], device=DEVICE)
        logits = decoder(fed, read.positions + step)
        for row, prompt, tokens in zip(logits, PROMPTS, STEPS, strict=True):
            alone = model(torch.tensor([[*prompt, *tokens[: step + 1]]], device=DEVICE)).logits[0, -1]
            torch.testing.assert_close(row, alone, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("folded", [True, False], ids=["folded", "the model's weights"])
@pytest.mark.parametrize("architecture", EVERY)
def test_decode_steps_give_the_logits_of_the_model_also_after_an_update_in_place(architecture, folded, monkeypatch):
    if not folded:
        monkeypatch.setattr(decoder_module, "is_foldable", lambda _: False)
    for model in (model_of(architecture), model_of(architecture, attention_bias=True, mlp_bias=True)):
        assert_steps_equal_the_model(model)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(1.1)
        assert_steps_equal_the_model(model)


@pytest.mark.parametrize("architecture", VARIANTS)
def test_adapters_are_part_of_a_step(architecture):
    plain, with_adapters = model_of(architecture), adapted(model_of(architecture))
    ids = torch.tensor([PROMPTS[0]], device=DEVICE)
    assert (plain(ids).logits - with_adapters(ids).logits).abs().max() > 1e-2
    assert is_supported(with_adapters)
    assert_steps_equal_the_model(with_adapters)


@pytest.mark.parametrize("with_adapters", [False, True], ids=["plain", "adapted"])
@pytest.mark.parametrize("architecture", VARIANTS)
def test_the_engine_samples_what_the_model_scores_also_after_an_update_in_place(architecture, with_adapters):
    model = model_of(architecture)
    if with_adapters:
        adapted(model)
    sampler, params = EngineSampler(model, (EOS,), PAD), SamplingParams(8, min_new_tokens=6)
    assert_scored_alike(model, sampler.sample(PROMPTS, 3, params, 1), params)
    arenas = list(sampler._arenas.values())
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(0.9)
    assert_scored_alike(model, sampler.sample(PROMPTS, 3, params, 1), params)
    assert list(sampler._arenas.values()) == arenas  # the same memory, which found the new weights


@torch.no_grad()
def assert_scored_alike(model, groups, params):
    assert len(completions(groups)) == 3 * len(PROMPTS)
    for prompt, group in zip(PROMPTS, groups, strict=True):
        for completion in group:
            ids = torch.tensor([[*prompt, *completion.token_ids]], device=DEVICE)
            logits = model(ids).logits[0, len(prompt) - 1 : -1]
            logits[: params.min_new_tokens, EOS] = -torch.inf
            expected = logits.log_softmax(-1).gather(1, ids[0, len(prompt) :, None])[:, 0].cpu()
            torch.testing.assert_close(torch.tensor(completion.logprobs), expected, atol=1e-5, rtol=1e-5)


def test_a_model_is_described_by_what_it_computes():
    granite = describe(tiny("granite"))
    assert granite.multipliers == Multipliers(3.0, 0.6, 1 / 1.5)
    assert granite.scaling == 0.2
    assert [each for each in EVERY if describe(tiny(each)).norms_behind] == ["olmo2"]
    assert describe(tiny("smollm3", num_hidden_layers=4, no_rope_layers=None)).rotary == (True, True, True, False)
    # Llama's model does not read what its configuration may hold.
    assert describe(tiny("llama", residual_multiplier=0.5, logits_scaling=8.0)) == describe(tiny("llama"))


@pytest.mark.parametrize(
    ("architecture", "more"),
    [
        ("phi3", {"sliding_window": 6}),
        ("phi3", {"sliding_window": 64, "max_position_embeddings": 64}),
        ("phi3", {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5}}),
        ("phi3", {"hidden_act": "gelu"}),
        ("smollm3", {"use_sliding_window": True, "sliding_window": 6}),
        ("granite", {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}}),
    ],
)
def test_windows_partial_rotation_and_other_activations_are_left_to_the_model(architecture, more):
    assert is_supported(tiny(architecture))
    assert not is_supported(tiny(architecture, **more))


def test_a_window_that_no_row_can_reach_is_none():
    model = model_of("phi3", sliding_window=65, max_position_embeddings=64)
    assert is_supported(model)
    assert_steps_equal_the_model(model)


@pytest.mark.parametrize("part", ["layer", "self_attn", "mlp"])
def test_a_layer_with_a_module_that_is_not_written_out_is_left_to_the_model(part):
    model = tiny("granite")
    layer = model.model.layers[1]
    (layer if part == "layer" else getattr(layer, part)).add_module("gate", torch.nn.Linear(2, 2))
    assert not is_supported(model)
