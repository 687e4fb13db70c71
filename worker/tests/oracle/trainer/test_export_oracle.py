"""Exported policies, loaded by transformers and peft, give the logits of the policy itself."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from language_rounds import Letters, play, trainer
from peft import PeftModel
from tiny_models import ARCHITECTURES, tiny
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2Config, GPT2LMHeadModel, pipeline

from swarmgame.game.components import ComponentContext
from swarmgame.models.tokenizer import character_tokenizer
from swarmgame.trainer.grpo.config import GRPOConfig
from swarmgame.trainer.grpo.trainer import GRPOTrainer

TEMPLATE = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
TEXT = "say a: two  spaces"
Source = Callable[[str], str]


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("models")


@pytest.fixture
def source(tmp_path: Path) -> Source:
    """Return the address of a saved model of an architecture, with the character tokenizer and a chat template."""

    def make(architecture: str, **config: Any) -> str:
        torch.manual_seed(3)
        if architecture == "gpt2":
            made: Any = GPT2LMHeadModel(GPT2Config(vocab_size=100, n_embd=32, n_layer=2, n_head=4, n_positions=128))
        else:
            made = tiny(architecture, vocabulary=100, **config).cpu()
        made.generation_config.eos_token_id = [2, 5]
        folder = tmp_path / "source"
        made.save_pretrained(folder)
        tokenizer = character_tokenizer()
        tokenizer.chat_template = TEMPLATE
        tokenizer.save_pretrained(folder)
        return f"file://{folder}"

    return make


def trained(cache: Path, model: str, **options: Any) -> GRPOTrainer:
    learner = trainer(cache, model=model, **options)
    for number in range(2):
        play(learner, number)
    assert learner.policy_version == 2
    return learner


def logits(model: Any, tokenizer: Any) -> Tensor:
    with torch.no_grad():
        found: Tensor = model(torch.tensor([tokenizer(TEXT)["input_ids"]])).logits
    return found


def check_files(learner: GRPOTrainer, folder: Path) -> Any:
    """Check tokenizer, chat template and generation configuration; return the loaded tokenizer."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer(TEXT)["input_ids"] == learner.policy.tokenizer(TEXT)["input_ids"]
    assert tokenizer.decode(tokenizer(TEXT)["input_ids"], skip_special_tokens=True) == TEXT
    assert tokenizer.chat_template == learner.policy.tokenizer.chat_template
    generation = json.loads((folder / "generation_config.json").read_text())
    stops = generation["eos_token_id"]
    assert tuple(stops if isinstance(stops, list) else [stops]) == learner.policy.eos_token_ids
    assert generation["pad_token_id"] == learner.policy.pad_token_id
    return tokenizer


@pytest.mark.parametrize("architecture", [*ARCHITECTURES, "gpt2"])
@pytest.mark.parametrize("lora", [None, {"rank": 4}])
def test_every_architecture_is_loaded_with_equal_logits(
    cache: Path, source: Source, tmp_path: Path, architecture: str, lora: Any
) -> None:
    learner = trained(cache, source(architecture), lora=lora)
    learner.export(tmp_path / "model")
    tokenizer = check_files(learner, tmp_path / "model")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    expected, found = (logits(model, tokenizer) for model in (learner.policy.model, loaded))
    if lora is None:
        assert torch.equal(found, expected)
    else:
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
        base = AutoModelForCausalLM.from_pretrained(tmp_path / "source")
        assert float((logits(base, tokenizer) - expected).abs().max()) > 1e-3


@pytest.mark.parametrize("architecture", ["qwen2", "llama"])
def test_adapters_are_loaded_by_peft_over_the_base_with_equal_logits(
    cache: Path, source: Source, tmp_path: Path, architecture: str
) -> None:
    learner = trained(cache, source(architecture), lora={"rank": 4})
    learner.export(tmp_path / "adapters", merge_adapters=False)
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "source")
    tokenizer = check_files(learner, tmp_path / "adapters")
    loaded = PeftModel.from_pretrained(base, tmp_path / "adapters")
    assert torch.equal(logits(loaded, tokenizer), logits(learner.policy.model, tokenizer))
    assert not list((tmp_path / "adapters").glob("model*.safetensors"))
    described = json.loads((tmp_path / "adapters" / "adapter_config.json").read_text())
    assert described["base_model_name_or_path"] == str(tmp_path / "source")
    learner.policy.source = replace(learner.policy.source, revision="v1")
    learner.export(tmp_path / "pinned", merge_adapters=False)
    assert json.loads((tmp_path / "pinned" / "adapter_config.json").read_text())["revision"] == "v1"


@pytest.mark.parametrize("layers", [("lm_head",), ("embed_tokens",), ("q_proj", "lm_head")])
def test_adapters_of_a_tied_layer_are_merged_into_that_layer_alone(
    cache: Path, source: Source, tmp_path: Path, layers: tuple[str, ...]
) -> None:
    learner = trained(
        cache, source("qwen2", tie_word_embeddings=True), lora={"rank": 4, "target_modules": layers}, learning_rate=1e-2
    )
    learner.export(tmp_path / "model")
    tokenizer = check_files(learner, tmp_path / "model")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    torch.testing.assert_close(logits(loaded, tokenizer), logits(learner.policy.model, tokenizer), rtol=1e-4, atol=1e-4)
    again = trainer(cache, model=f"file://{tmp_path / 'model'}")
    torch.testing.assert_close(
        logits(again.policy.model, tokenizer), logits(learner.policy.model, tokenizer), rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize("lora", [None, {"rank": 4}])
def test_the_builtin_model_is_loaded_with_equal_logits_and_answers_through_a_pipeline(
    cache: Path, tmp_path: Path, lora: Any
) -> None:
    config = GRPOConfig(generations=4, max_new_tokens=8, learning_rate=2e-3, lora=lora)
    context = ComponentContext(model_uri="builtin://tiny?accuracy=0.3&hidden=32", cache=cache, demonstrations=Letters())
    learner = GRPOTrainer(config, context)
    play(learner, 0)
    learner.export(tmp_path / "model")
    tokenizer = check_files(learner, tmp_path / "model")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    torch.testing.assert_close(
        logits(loaded, tokenizer), logits(learner.policy.model, tokenizer), rtol=1e-4, atol=0 if lora is None else 1e-4
    )
    generate = pipeline("text-generation", model=str(tmp_path / "model"))
    answer = generate("say a:", max_new_tokens=8, do_sample=False, return_full_text=False)[0]["generated_text"]
    ids = torch.tensor([tokenizer("say a:")["input_ids"]])
    expected = learner.policy.model.generate(ids, max_new_tokens=8, do_sample=False, eos_token_id=2, pad_token_id=0)
    assert answer == tokenizer.decode(expected[0, ids.shape[1] :], skip_special_tokens=True)
    if lora is not None:
        learner.export(tmp_path / "adapters", merge_adapters=False)
        base = AutoModelForCausalLM.from_pretrained(tmp_path / "adapters" / "base")
        over = PeftModel.from_pretrained(base, tmp_path / "adapters")
        assert torch.equal(logits(over, tokenizer), logits(learner.policy.model, tokenizer))


@pytest.mark.parametrize("lora", [None, {"rank": 4}])
def test_a_policy_that_computed_in_bfloat16_is_exported_in_it_from_its_checkpoint(
    cache: Path, source: Source, tmp_path: Path, lora: Any
) -> None:
    learner = trained(cache, source("llama"), dtype="bfloat16", lora=lora)
    state = copy.deepcopy(dict(learner.state_dict()))
    given = GRPOConfig(generations=4, max_new_tokens=8, lora=lora, beta=0.1)  # dtype: auto, float32 on a CPU
    config, weights = GRPOTrainer.prepare_export(given, state)
    again = GRPOTrainer(config, learner.context)
    again.load_state_dict(weights)
    again.export(tmp_path / "model")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype="auto")
    assert loaded.dtype == torch.bfloat16
    expected, found = (logits(model, again.policy.tokenizer).float() for model in (learner.policy.model, loaded))
    assert lora is not None or torch.equal(found, expected)
    # Merged weights are rounded to bfloat16, as those of any merged adapters are.
    assert float((found - expected).norm() / expected.norm()) < 0.03
    assert again.policy._reference is None
