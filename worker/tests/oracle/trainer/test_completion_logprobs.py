"""The forward pass of training: values, gradients and what the head gets to see."""

from __future__ import annotations

import pytest
import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

from swarmgame.trainer.grpo import logprobs as module
from swarmgame.trainer.grpo.logprobs import completion_logprobs, selective_log_softmax

PROMPTS = [[5, 6, 7, 8, 9], [3], [12, 4, 9]]
COMPLETIONS = [[4, 1], [2, 7, 7, 11, 1], [6]]


@pytest.fixture
def model():
    torch.manual_seed(3)
    shape = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
    }
    return Qwen2ForCausalLM(
        Qwen2Config(vocab_size=17, initializer_range=0.4, bos_token_id=None, eos_token_id=1, pad_token_id=0, **shape)
    )


def naive(model, prompt, completion, temperature):
    """One row without padding, all logits, plain log_softmax."""
    ids = torch.tensor([[*prompt, *completion]])
    logprobs = (model(ids).logits[0, len(prompt) - 1 : -1] / temperature).log_softmax(-1)
    return logprobs.gather(1, ids[0, len(prompt) :, None])[:, 0], -(logprobs.exp() * logprobs).sum(-1)


@pytest.mark.parametrize("rows_per_chunk", [1, 2, 1000])
def test_values_and_gradients_equal_the_naive_way(model, monkeypatch, rows_per_chunk):
    monkeypatch.setattr(module, "CHUNK_ELEMENTS", 17 * rows_per_chunk)
    weights = torch.randn(3, 5, generator=torch.Generator().manual_seed(0))
    logprobs, entropies, mask = completion_logprobs(model, PROMPTS, COMPLETIONS, 0.7, with_entropy=True, pad_token_id=9)
    assert mask.tolist() == [[place < len(row) for place in range(5)] for row in COMPLETIONS]
    assert logprobs[~mask].tolist() == [0.0] * int((~mask).sum())
    (logprobs * weights).sum().backward()
    ours = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}

    model.zero_grad()
    total = 0.0
    for row, (prompt, completion) in enumerate(zip(PROMPTS, COMPLETIONS, strict=True)):
        expected, entropy = naive(model, prompt, completion, 0.7)
        torch.testing.assert_close(logprobs[row, : len(completion)], expected, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(entropies[row, : len(completion)], entropy, atol=1e-5, rtol=1e-5)
        total = total + (expected * weights[row, : len(completion)]).sum()
    total.backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(ours[name], parameter.grad, atol=1e-5, rtol=1e-4)


def test_the_head_sees_completion_positions_only(model):
    seen = []
    model.lm_head.register_forward_hook(lambda _, arguments, __: seen.append(arguments[0].shape[:-1].numel()))
    completion_logprobs(model, PROMPTS, COMPLETIONS, 1.0, with_entropy=False)
    assert seen == [sum(map(len, COMPLETIONS))]
    assert not model.lm_head._forward_pre_hooks, "the model must be left as it was"


def test_a_model_whose_head_is_not_called_is_scored_all_the_same(model, monkeypatch):
    expected = completion_logprobs(model, PROMPTS, COMPLETIONS, 1.0, with_entropy=False)[0]
    monkeypatch.setattr(model, "get_output_embeddings", lambda: None)
    torch.testing.assert_close(completion_logprobs(model, PROMPTS, COMPLETIONS, 1.0, with_entropy=False)[0], expected)


def test_a_model_with_lora_adapters_gets_gradients_in_them_alone(model):
    from peft import LoraConfig, get_peft_model

    adapted = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"))
    logprobs, _, _ = completion_logprobs(adapted, PROMPTS, COMPLETIONS, 1.0, with_entropy=False)
    logprobs.sum().backward()
    touched = {name for name, parameter in adapted.named_parameters() if parameter.grad is not None}
    assert touched
    assert all("lora_" in name for name in touched)


def test_entropy_is_none_when_not_requested_and_never_carries_a_gradient(model):
    assert completion_logprobs(model, PROMPTS, COMPLETIONS, 1.0, with_entropy=False)[1] is None
    assert not completion_logprobs(model, PROMPTS, COMPLETIONS, 1.0, with_entropy=True)[1].requires_grad


def test_the_gradient_of_the_chunked_log_softmax_passes_gradcheck():
    logits = torch.randn(6, 11, dtype=torch.float64, requires_grad=True, generator=torch.Generator().manual_seed(1))
    target = torch.tensor([0, 3, 10, 5, 5, 2])
    assert torch.autograd.gradcheck(lambda values: selective_log_softmax(values, target, 0.7)[0], (logits,))


@pytest.mark.parametrize(
    ("prompts", "answers", "temperature", "message"),
    [
        ([], [], 1.0, "at least one"),
        ([[1]], [[1], [2]], 1.0, "1 prompts but 2 completions"),
        ([[1]], [[]], 1.0, "empty"),
        ([[]], [[1]], 1.0, "empty"),
        ([[1]], [[1]], 0.0, "temperature is 0.0"),
    ],
)
def test_impossible_batches_are_refused(model, prompts, answers, temperature, message):
    with pytest.raises(ValueError, match=message):
        completion_logprobs(model, prompts, answers, temperature, with_entropy=False)
