"""What every sampler must do, on tiny random models of three architectures; on a CUDA device where there is one."""

from __future__ import annotations

import math
from functools import partial
from itertools import pairwise

import pytest
import torch
from peft import LoraConfig, get_peft_model
from scipy.stats import chi2
from tiny_models import ARCHITECTURES, DEVICE, EOS, PAD, PROMPTS, completions, tiny
from transformers import GenerationConfig

from swarmgame.inference.architecture import is_supported
from swarmgame.inference.continuous_batching import EngineSampler
from swarmgame.inference.decoder import SharedPromptDecoder
from swarmgame.inference.decoding import Decoding
from swarmgame.inference.eager import EagerSampler
from swarmgame.inference.sampler import ONE_MINUS_EPS, SamplingParams
from swarmgame.inference.token_sampler import BLOCKED_FROM, TokenSampler
from swarmgame.trainer.grpo.logprobs import EarlyEos, completion_logprobs

SAMPLERS = {
    "eager": EagerSampler,
    "eager, the model's own forward": partial(EagerSampler, decoding=Decoding.CACHED),
    "eager, a mask of two dimensions": partial(EagerSampler, decoding=Decoding.PLAIN_MASK),
    "eager, no padding": partial(EagerSampler, decoding=Decoding.UNPADDED),
    "eager, no cache": partial(EagerSampler, decoding=Decoding.RECOMPUTED),
    "engine": EngineSampler,  # on a CPU with the definitions of its kernels, step by step
}


@pytest.fixture(params=SAMPLERS)
def make(request):
    """Builds the sampler under test for a model."""
    return lambda model, eos=(EOS,): SAMPLERS[request.param](model, eos, PAD)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_greedy_equals_transformers_generate(make, architecture):
    model = tiny(architecture)
    sampler = make(model)
    greedy = GenerationConfig(max_new_tokens=24, do_sample=False, eos_token_id=EOS, pad_token_id=PAD)
    lengths = set()
    for prompt in PROMPTS:
        expected = model.generate(torch.tensor([prompt], device=DEVICE), generation_config=greedy)[
            0, len(prompt) :
        ].tolist()
        [[ours]] = sampler.sample([prompt], 1, SamplingParams(24, greedy=True), 0)
        assert list(ours.token_ids) == expected
        lengths.add(len(expected))
    assert max(lengths) > 2


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_ragged_prompts_in_one_batch_answer_as_they_do_alone(make, architecture, attention):
    sampler = make(tiny(architecture, attn_implementation=attention))
    params = SamplingParams(20, greedy=True, min_new_tokens=3)
    together = sampler.sample(PROMPTS, 3, params, 0)
    for prompt, group in zip(PROMPTS, together, strict=True):
        [[alone]] = sampler.sample([prompt], 1, params, 0)
        for completion in group:
            assert completion.token_ids == alone.token_ids
            assert completion.logprobs == pytest.approx(alone.logprobs, abs=1e-4)


@pytest.mark.parametrize(
    "params",
    [SamplingParams(2), SamplingParams(2, temperature=0.6), SamplingParams(2, top_k=3), SamplingParams(2, top_p=0.93)],
)
def test_the_distribution_is_the_policys_own(make, params):
    """Chi-square on the joint distribution of two tokens out of five, 21 cells at most; a correct sampler fails once
    in a thousand seeds.
    """
    model = tiny(vocabulary=5, spread=0.2)
    sampler, draws = make(model, eos=(EOS,)), 6000
    counts: dict[tuple[int, ...], int] = {}
    [group] = sampler.sample([[2, 3]], draws, params, 3)
    for completion in group:
        counts[completion.token_ids] = counts.get(completion.token_ids, 0) + 1
    expected = joint_distribution(model, [2, 3], params)
    assert set(counts) <= {cell for cell, probability in expected.items() if probability > 0}
    cells = {cell: probability * draws for cell, probability in expected.items() if probability * draws >= 5}
    assert draws - sum(cells.values()) < 0.02 * draws
    assert len(cells) >= 5
    statistic = sum((counts.get(cell, 0) - mean) ** 2 / mean for cell, mean in cells.items())
    assert chi2.sf(statistic, len(cells) - 1) > 1e-3


@torch.no_grad()
def joint_distribution(model, prompt, params):
    """By brute force, from forward passes of transformers and processors written the obvious way."""

    def step(ids):
        logits = model(torch.tensor([ids], device=DEVICE)).logits[0, -1] / params.temperature
        probabilities = logits.softmax(-1).tolist()
        order = sorted(range(len(probabilities)), key=lambda token: -probabilities[token])
        kept = order[: params.top_k or None]
        total = sum(probabilities[token] for token in kept)
        nucleus, mass = [], 0.0
        for token in kept:
            if mass >= params.top_p:
                break
            nucleus.append(token)
            mass += probabilities[token] / total
        total = sum(probabilities[token] for token in nucleus)
        return {token: probabilities[token] / total for token in nucleus}

    cells = {}
    for first, p in step(prompt).items():
        if first == EOS:
            cells[(first,)] = p
        else:
            cells |= {(first, second): p * q for second, q in step([*prompt, first]).items()}
    return cells


@pytest.mark.parametrize(
    "params", [SamplingParams(30), SamplingParams(30, temperature=1.7, top_k=4, top_p=0.8, min_new_tokens=5)]
)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_logprobs_equal_a_full_forward_whatever_was_filtered(make, architecture, params):
    model = tiny(architecture)
    groups = make(model).sample(PROMPTS, 6, params, 1)
    for prompt, group in zip(PROMPTS, groups, strict=True):
        for completion in group:
            ids = torch.tensor([[*prompt, *completion.token_ids]], device=DEVICE)
            with torch.no_grad():
                logits = model(ids).logits[0, len(prompt) - 1 : -1] / params.temperature
            logits[: params.min_new_tokens, EOS] = -torch.inf
            logprobs = logits.log_softmax(-1)
            expected = logprobs.gather(1, ids[0, len(prompt) :, None])[:, 0]
            torch.testing.assert_close(torch.tensor(completion.logprobs), expected.cpu(), atol=1e-4, rtol=0)


def test_training_scores_a_fresh_rollout_as_its_sampler_did(make):
    model = tiny()
    groups = make(model).sample(PROMPTS, 6, SamplingParams(30, temperature=0.9), 2)
    fresh = completions(groups)
    prompts = [prompt for prompt in PROMPTS for _ in range(6)]
    logprobs, _, mask = completion_logprobs(model, prompts, [c.token_ids for c in fresh], 0.9, with_entropy=False)
    assert mask.sum(1).tolist() == [len(completion.token_ids) for completion in fresh]
    for row, completion in zip(logprobs, fresh, strict=True):
        torch.testing.assert_close(
            row[: len(completion.logprobs)].cpu(), torch.tensor(completion.logprobs), atol=1e-4, rtol=0
        )
    assert any(completion.stopped for completion in fresh)


@pytest.mark.parametrize("vocabulary", [19, 4200])
@pytest.mark.parametrize("filters", [{}, {"top_p": 0.95}, {"greedy": True}], ids=["plain", "top-p", "greedy"])
def test_a_policy_that_is_sure_of_eos_is_sampled_among_the_other_tokens_and_scored_so(make, vocabulary, filters):
    """At temperature 0.1 every other probability is below e^-100: 0 in fp32, if EOS were taken out afterwards."""
    model = tiny(vocabulary=vocabulary, attention_bias=True).to(DEVICE)
    head = torch.nn.Linear(model.config.hidden_size, vocabulary, device=DEVICE)
    with torch.no_grad():
        head.weight.copy_(model.lm_head.weight)
        head.bias.zero_()[EOS] = 40.0
    model.lm_head = head
    params = SamplingParams(8, temperature=0.1, min_new_tokens=3, **filters)
    fresh = completions(make(model).sample(PROMPTS, 6, params, 2))
    assert {(len(completion.token_ids), completion.stopped) for completion in fresh} == {(4, True)}
    assert all(math.isfinite(value) for completion in fresh for value in completion.logprobs)
    if not filters:
        assert len({completion.token_ids for completion in fresh}) > len(PROMPTS)
    rows = [prompt for prompt in PROMPTS for _ in range(6)], [completion.token_ids for completion in fresh]
    logprobs, _, _ = completion_logprobs(model, *rows, 0.1, with_entropy=False, early_eos=EarlyEos((EOS,), 3))
    for row, completion in zip(logprobs, fresh, strict=True):
        assert row.tolist() == pytest.approx(completion.logprobs, abs=2e-3)  # rounding of 40 / 0.1


def test_eos_is_the_last_id_of_a_stopped_completion_and_appears_nowhere_else(make):
    fresh = completions(make(tiny()).sample(PROMPTS, 25, SamplingParams(12), 4))
    assert {completion.stopped for completion in fresh} == {True, False}
    for completion in fresh:
        assert EOS not in completion.token_ids[:-1]
        assert completion.stopped == (completion.token_ids[-1] == EOS)
        assert completion.stopped or len(completion.token_ids) == 12
        assert len(completion.token_ids) == len(completion.logprobs)
        assert all(logprob <= 0 for logprob in completion.logprobs)


def test_any_of_several_eos_ids_stops(make):
    fresh = completions(make(tiny(), eos=(EOS, 4, 9)).sample(PROMPTS, 25, SamplingParams(12), 4))
    assert {completion.token_ids[-1] for completion in fresh if completion.stopped} == {EOS, 4, 9}
    assert not any({EOS, 4, 9} & set(completion.token_ids[:-1]) for completion in fresh)


def test_eos_is_not_drawn_before_the_minimum_length(make):
    fresh = completions(make(tiny()).sample(PROMPTS, 25, SamplingParams(12, min_new_tokens=7), 4))
    assert min(len(completion.token_ids) for completion in fresh) >= 8
    assert any(completion.stopped for completion in fresh)
    complete = completions(make(tiny()).sample(PROMPTS, 5, SamplingParams(12, min_new_tokens=12), 4))
    assert {(len(completion.token_ids), completion.stopped) for completion in complete} == {(12, False)}


def test_the_same_seed_gives_the_same_completions_and_another_seed_others(make):
    sampler = make(tiny())
    first = sampler.sample(PROMPTS, 4, SamplingParams(16), 5)
    assert sampler.sample(PROMPTS, 4, SamplingParams(16), 5) == first
    assert sampler.sample(PROMPTS, 4, SamplingParams(16), 6) != first


def test_a_completion_does_not_depend_on_which_rows_share_its_batch(make):
    """A row's random numbers come from its place, so one call for all prompts and one call a prompt are the same."""
    sampler = make(tiny())
    batch = sampler.sample(PROMPTS, 8, SamplingParams(30), 6)
    for index, (prompt, group) in enumerate(zip(PROMPTS, batch, strict=True)):
        [single] = sampler.sample([prompt], 8, SamplingParams(30), 6, first_row=8 * index)
        assert [completion.token_ids for completion in single] == [completion.token_ids for completion in group]


def test_each_prompt_has_its_own_budget(make):
    sampler, budgets = make(tiny()), [3, 20, 1, 12]
    free = sampler.sample(PROMPTS, 8, SamplingParams(20), 6)
    bounded = sampler.sample(PROMPTS, 8, SamplingParams(20), 6, budgets=budgets)
    for group, complete, budget in zip(bounded, free, budgets, strict=True):
        assert [completion.token_ids for completion in group] == [
            completion.token_ids[:budget] for completion in complete
        ]
        assert all(completion.stopped == (completion.token_ids[-1] == EOS) for completion in group)
    with pytest.raises(ValueError, match="one a prompt, each of 1 to 20 tokens"):
        sampler.sample(PROMPTS, 8, SamplingParams(20), 6, budgets=[3, 21, 1, 12])


def test_a_training_model_is_left_in_training_mode_and_without_gradients(make):
    model = tiny().train()
    make(model).sample(PROMPTS, 2, SamplingParams(4), 0)
    assert model.training
    assert all(parameter.grad is None and not parameter.is_inference() for parameter in model.parameters())


def test_no_prompts_give_no_completions(make):
    assert make(tiny()).sample([], 3, SamplingParams(4), 0) == []


def test_impossible_requests_are_refused(make):
    sampler = make(tiny())
    with pytest.raises(ValueError, match=r"prompts \[1\] are empty"):
        sampler.sample([[3], []], 2, SamplingParams(4), 0)
    with pytest.raises(ValueError, match="n is 0"):
        sampler.sample([[3]], 0, SamplingParams(4), 0)


@pytest.mark.parametrize(
    "wrong",
    [
        {"max_new_tokens": 0},
        {"temperature": 0.0},
        {"temperature": math.nan},
        {"top_k": -1},
        {"top_p": 0.0},
        {"min_new_tokens": 9},
    ],
)
def test_impossible_parameters_are_refused(wrong):
    with pytest.raises(ValueError, match=f"{next(iter(wrong))} is"):
        SamplingParams(**{"max_new_tokens": 8} | wrong)


def test_finished_rows_leave_the_batch_and_the_prompt_is_read_once():
    """Counts the rows of the model's input: finished rows are not computed to the end."""
    model, seen = tiny(), []
    model.register_forward_pre_hook(
        lambda _, __, arguments: seen.append(arguments["input_ids"].shape[0]), with_kwargs=True
    )
    EagerSampler(model, (EOS,), PAD).sample(PROMPTS, 16, SamplingParams(60), 8)
    prefill, *steps = seen
    assert prefill == len(PROMPTS)
    assert steps[0] == len(PROMPTS) * 16
    assert all(later <= earlier for earlier, later in pairwise(steps))
    assert min(steps) < 0.5 * steps[0]


def test_finished_rows_leave_the_written_out_decoder_too(monkeypatch):
    seen = []
    step = SharedPromptDecoder.__call__
    monkeypatch.setattr(
        SharedPromptDecoder,
        "__call__",
        lambda self, token, position: seen.append(len(token)) or step(self, token, position),
    )
    EagerSampler(tiny(), (EOS,), PAD).sample(PROMPTS, 16, SamplingParams(60), 8)
    assert seen[0] == len(PROMPTS) * 16
    assert min(seen) < 0.5 * seen[0]


def adapted(model, *targets):
    """The model with adapters in place, which are not zero."""
    get_peft_model(model, LoraConfig(r=2, target_modules=list(targets), task_type="CAUSAL_LM", init_lora_weights=False))
    return model.eval()


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_llama_shaped_models_are_written_out_and_nothing_that_was_not_seen(architecture):
    assert is_supported(tiny(architecture))
    assert is_supported(adapted(tiny(architecture), "q_proj", "down_proj"))
    assert not is_supported(adapted(tiny(architecture), "embed_tokens"))
    checkpointed = adapted(tiny(architecture), "q_proj")
    checkpointed.enable_input_require_grads()
    assert is_supported(checkpointed)
    hooked = tiny(architecture)
    hooked.model.layers[1].mlp.register_forward_hook(lambda *_: None)
    assert not is_supported(hooked)
    stretched = tiny(architecture, rope_parameters={"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0})
    assert not is_supported(stretched)


@pytest.mark.parametrize(
    "adapters", [(), ("q_proj", "v_proj", "o_proj", "up_proj", "down_proj")], ids=["plain", "adapted"]
)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_all_ways_to_take_a_step_draw_the_same_tokens(architecture, adapters):
    model = tiny(architecture)
    if adapters:
        model = adapted(model, *adapters)
    drawn = [
        [c.token_ids for c in completions(one(model, (EOS,), PAD).sample(PROMPTS, 6, SamplingParams(24), 10))]
        for one in SAMPLERS.values()
    ]
    assert all(other == drawn[0] for other in drawn[1:])


def test_a_wide_vocabulary_is_searched_by_blocks_with_the_same_result():
    """Against the plain inversion; also with most probabilities 0, and with probabilities close to 0 and 1."""
    vocabulary = BLOCKED_FROM + 77
    generator = torch.Generator().manual_seed(0)
    chances = torch.rand(64, vocabulary, generator=generator) ** 8
    chances[:32] *= torch.rand(32, vocabulary, generator=generator) < 0.001
    chances[:, 2000] += 0.01
    uniform = torch.rand(64, dtype=torch.float64, generator=generator)
    uniform[::8], uniform[1::8] = 0.0, ONE_MINUS_EPS
    cumulative = chances.double().cumsum(1)
    expected = torch.searchsorted(cumulative, (uniform * cumulative[:, -1]).unsqueeze(1), right=True).squeeze(1)
    drawn = TokenSampler._invert(chances, uniform)
    assert (chances.gather(1, drawn.unsqueeze(1)) > 0).all()
    assert torch.equal(drawn, expected)


def test_a_model_with_a_sliding_window_is_sampled_through_its_own_cache(make):
    model = tiny(use_sliding_window=True, sliding_window=4, max_window_layers=1)
    assert "sliding_attention" in model.config.layer_types
    sampler, prompt = make(model), [5, 6, 7, 8, 9, 10, 11]
    [[ours], _] = sampler.sample([prompt, [3, 4]], 1, SamplingParams(16, greedy=True, min_new_tokens=16), 0)
    settings = GenerationConfig(
        max_new_tokens=16, min_new_tokens=16, do_sample=False, eos_token_id=EOS, pad_token_id=PAD
    )
    assert (
        list(ours.token_ids)
        == model.generate(torch.tensor([prompt], device=DEVICE), generation_config=settings)[0, 7:].tolist()
    )


def test_bfloat16_models_are_sampled_with_fp32_logprobs(make):
    model = tiny().to(torch.bfloat16)
    fresh = completions(make(model).sample(PROMPTS, 4, SamplingParams(10), 9))
    prompts = [prompt for prompt in PROMPTS for _ in range(4)]
    logprobs, _, _ = completion_logprobs(model, prompts, [c.token_ids for c in fresh], 1.0, with_entropy=False)
    assert logprobs.dtype == torch.float32
    for row, completion in zip(logprobs, fresh, strict=True):
        torch.testing.assert_close(
            row[: len(completion.logprobs)].cpu(), torch.tensor(completion.logprobs), atol=0.15, rtol=0
        )
