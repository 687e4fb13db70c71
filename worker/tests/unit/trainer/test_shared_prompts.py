"""Reading a prompt once for all its completions gives the numbers of reading it every time."""

from __future__ import annotations

import random

import pytest
import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

from swarmgame.trainer.grpo import logprobs
from swarmgame.trainer.grpo.logprobs import completion_logprobs
from swarmgame.trainer.grpo.shared_prompts import is_worthwhile


def _model(**changes: object) -> Qwen2ForCausalLM:
    torch.manual_seed(0)
    sizes = {
        "vocab_size": 64,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
    }
    return Qwen2ForCausalLM(Qwen2Config(**sizes, num_key_value_heads=2, tie_word_embeddings=True, **changes)).train()


def _groups(prompts: tuple[int, ...], completions: int = 4, seed: int = 3) -> tuple[list[list[int]], list[list[int]]]:
    draw = random.Random(seed)
    distinct = [[draw.randrange(64) for _ in range(length)] for length in prompts for _ in [0]]
    rows = [prompt for prompt in distinct for _ in range(completions)]
    return rows, [[draw.randrange(64) for _ in range(draw.randint(1, 6))] for _ in rows]


def _scored(model: Qwen2ForCausalLM, rows: list[list[int]], replies: list[list[int]]) -> tuple[torch.Tensor, ...]:
    model.zero_grad()
    scores, entropies, mask = completion_logprobs(model, rows, replies, 0.7, with_entropy=True)
    assert entropies is not None
    (scores.exp() * torch.arange(1, scores.shape[1] + 1)).sum().backward()
    return (
        scores.detach(),
        entropies,
        mask,
        *(parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None),
    )


@pytest.mark.parametrize("lengths", [(30, 30), (30, 17, 41), (2, 40, 25), (25,)])
def test_scores_entropies_and_gradients_are_those_of_the_plain_pass(
    lengths: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = _model()
    rows, replies = _groups(lengths)
    order = random.Random(1).sample(range(len(rows)), len(rows))
    rows, replies = [rows[index] for index in order], [replies[index] for index in order]
    assert is_worthwhile(model, rows, replies)
    shared = _scored(model, rows, replies)
    monkeypatch.setattr(logprobs, "is_worthwhile", lambda *_: False)
    plain = _scored(model, rows, replies)
    assert len(shared) == len(plain) > 10
    for one, other in zip(shared, plain, strict=True):
        torch.testing.assert_close(one, other, atol=2e-5, rtol=2e-5)


def test_rows_of_their_own_prompts_are_read_in_one_pass() -> None:
    rows, replies = _groups((30, 31, 32, 33), completions=1)
    assert not is_worthwhile(_model(), rows, replies)


def test_a_prompt_of_one_token_is_read_in_one_pass() -> None:
    rows, replies = _groups((1, 30))
    assert not is_worthwhile(_model(), rows, replies)


def test_gradient_checkpointing_keeps_the_plain_pass() -> None:
    model = _model()
    model.gradient_checkpointing_enable()
    rows, replies = _groups((30, 30))
    assert not is_worthwhile(model, rows, replies)
    assert is_worthwhile(model.eval(), rows, replies)


def test_a_model_with_windows_keeps_the_plain_pass() -> None:
    model = _model(use_sliding_window=True, sliding_window=8, max_window_layers=1)
    rows, replies = _groups((30, 30))
    assert not is_worthwhile(model, rows, replies)


def test_local_attention_counts_as_a_window_although_no_short_prompt_shows_it() -> None:
    from transformers import GPTNeoConfig

    from swarmgame.inference.cache import is_windowed

    assert is_windowed(GPTNeoConfig(num_layers=2, attention_types=[[["global", "local"], 1]], window_size=256))
    assert not is_windowed(GPTNeoConfig(num_layers=2, attention_types=[[["global"], 2]]))
    assert not is_windowed(Qwen2Config())
