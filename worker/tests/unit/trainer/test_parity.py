"""Parity at load, on tiny models: which shortcuts are left out, what is refused, and what noise is left in training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from language_rounds import contribution_of, play, round_of, scored, state_of, trainer
from model_folders import GPT, folder
from transformers import AutoModelForCausalLM as Auto
from transformers import (
    Gemma2Config,
    GraniteConfig,
    MptConfig,
    OPTConfig,
    PreTrainedConfig,
    Qwen2Config,
    Qwen3MoeConfig,
    Starcoder2Config,
)

from swarmgame.errors import InvalidManifest
from swarmgame.game.state import Message, Prompt
from swarmgame.inference.decoding import Decoding
from swarmgame.models.tokenizer import character_tokenizer
from swarmgame.trainer.grpo.loss import Mean
from swarmgame.trainer.grpo.parity import Notices, Parity
from swarmgame.trainer.grpo.policy import computing_type
from swarmgame.trainer.grpo.prompts import PromptEncoder
from swarmgame.trainer.grpo.step_stats import StepStats
from swarmgame.trainer.grpo.trainer import GRPOTrainer


@pytest.mark.parametrize(
    ("config", "more"),
    [
        (GraniteConfig, {"attention_dropout": 0.2}),
        (Starcoder2Config, {"attention_dropout": 0.2, "residual_dropout": 0.2, "embedding_dropout": 0.2}),
        (OPTConfig, {**GPT, "dropout": 0.2, "layerdrop": 0.5}),
    ],
)
@pytest.mark.parametrize("checkpointing", [False, True])
def test_the_first_step_sees_the_policy_that_sampled_whatever_noise_its_architecture_has(
    tmp_path: Path, config: type[PreTrainedConfig], more: dict[str, Any], checkpointing: bool
) -> None:
    model = folder(tmp_path, config, **more)
    learner = trainer(tmp_path, model=model, gradient_checkpointing=checkpointing)
    state = state_of(round_of(), [contribution_of(learner, round_of())])
    metrics = learner.train(state, scored(state))
    assert metrics["steps"] == 1
    assert metrics["mismatch_kl"] < 1e-9
    assert metrics["clip_low"] == metrics["clip_high"] == 0
    assert learner.notices() == []


@pytest.mark.parametrize(
    ("config", "more"),
    [
        (Qwen2Config, {}),
        (OPTConfig, GPT),
        (Gemma2Config, {"sliding_window": 6}),
        (Qwen3MoeConfig, {"num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 16}),
    ],
)
def test_the_first_step_in_bfloat16_is_within_its_rounding(
    tmp_path: Path, config: type[PreTrainedConfig], more: dict[str, Any]
) -> None:
    learner = trainer(tmp_path, model=folder(tmp_path, config, **more), dtype="bfloat16")
    state = state_of(round_of(), [contribution_of(learner, round_of())])
    metrics = learner.train(state, scored(state))
    assert abs(metrics["mismatch_kl"]) < 1e-3
    assert metrics["clip_low"] == metrics["clip_high"] == 0
    assert learner.notices() == []


def test_the_dropout_of_adapters_is_on_in_training(tmp_path: Path) -> None:
    model = folder(tmp_path, GraniteConfig, attention_dropout=0.2)
    plain, noisy = (
        trainer(tmp_path, model=model, lora={"rank": 2, "dropout": dropout}, iterations=2) for dropout in (0.0, 0.5)
    )
    first, second = play(plain, 0), play(noisy, 0)
    assert first["loss"] != second["loss"]  # the first step is alike: adapters begin at zero
    assert play(plain, 0) != second


def test_a_configuration_keeps_its_dropout_for_exports(tmp_path: Path) -> None:
    learner = trainer(tmp_path, model=folder(tmp_path, GraniteConfig, attention_dropout=0.2))
    assert learner.policy.model.config.attention_dropout == 0.2


def test_prompts_are_not_read_once_by_a_model_that_counts_columns(tmp_path: Path) -> None:
    model = folder(tmp_path, MptConfig, d_model=32, n_layers=2, n_heads=4, max_seq_len=256)
    learner = trainer(tmp_path, model=model)
    assert learner.parity.decoding is Decoding.CACHED
    assert not learner.policy.share_prompts
    [notice] = learner.notices()
    assert notice.code == "shortcut-left-out"
    assert "MptForCausalLM: training reads a prompt again" in notice.text


def test_a_decoder_that_computes_something_else_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from swarmgame.inference import layers

    model = folder(tmp_path)
    assert trainer(tmp_path, model=model).parity == Parity(Decoding.FUSED, packed=False, share_prompts=True)
    right = layers.FoldedNorm.__call__
    monkeypatch.setattr(layers.FoldedNorm, "__call__", lambda norm, x: right(norm, x) * 1.01)
    learner = trainer(tmp_path, model=model)
    assert learner.parity.decoding is Decoding.CACHED
    assert "decode steps are those of the model itself" in learner.notices()[0].text
    assert play(learner, 0)["mismatch_kl"] < 1e-9


def test_a_model_whose_training_differs_from_rows_alone_is_refused_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers.models.qwen2.modeling_qwen2 import Qwen2MLP

    model = folder(tmp_path)
    right = Qwen2MLP.forward
    # What computes otherwise where there are several rows, as a router with a capacity does.
    monkeypatch.setattr(Qwen2MLP, "forward", lambda mlp, x: right(mlp, x) * (1.0 if len(x) == 1 else 1.1))
    with pytest.raises(InvalidManifest, match=r"spec\.model\.uri.*Qwen2ForCausalLM cannot: .* differ by up to"):
        trainer(tmp_path, model=model)


def test_damaged_weights_are_refused(tmp_path: Path) -> None:
    model = folder(tmp_path)
    damaged = Auto.from_pretrained(tmp_path)
    with torch.no_grad():
        damaged.model.norm.weight[0] = torch.nan
    damaged.save_pretrained(tmp_path)
    with pytest.raises(InvalidManifest, match="not finite"):
        trainer(tmp_path, model=model)


def test_a_first_step_that_differs_from_the_sampler_is_noticed_once() -> None:
    notices = Notices(Parity(Decoding.FUSED, packed=False, share_prompts=True), torch.float32)
    notices.compare(StepStats())
    notices.compare(StepStats(0.0, metrics_of(0.35)))
    notices.compare(StepStats(0.0, metrics_of(0.5)))
    [notice] = notices.found
    assert (notice.code, "mismatch_kl is 0.35" in notice.text) == ("sampler-mismatch", True)
    later = Notices(Parity(Decoding.FUSED, packed=False, share_prompts=True), torch.float32)
    for mismatch in (1e-7, 0.35):  # the second step's policy is another one
        later.compare(StepStats(0.0, metrics_of(mismatch)))
    assert later.found == []


def metrics_of(mismatch: float) -> dict[str, Mean]:
    return {"mismatch_kl": Mean(mismatch * 10, 10)}


# ── limits


def test_a_budget_that_leaves_no_room_for_a_prompt_is_refused(tmp_path: Path) -> None:
    model = folder(tmp_path, max_position_embeddings=64)
    with pytest.raises(InvalidManifest, match=r"maxNewTokens is 60; expected at most 48: .* room for 64 tokens"):
        trainer(tmp_path, model=model, max_new_tokens=60)
    learner = trainer(tmp_path, model=model, max_new_tokens=48)
    assert learner.policy.longest_prompt == 16


def test_a_prompt_that_is_cut_is_counted(tmp_path: Path) -> None:
    learner = trainer(tmp_path, model=folder(tmp_path, max_position_embeddings=64), max_new_tokens=40)
    asked = Prompt("x", (Message("user", "What is 12 times 12, divided by 4?"),))
    for _ in range(2):
        assert len(learner.policy.encode(asked)) == 24
    [notice] = learner.notices()
    assert (notice.code, notice.count) == ("prompts-cut", 2)
    assert "the first such had 35 tokens, and there is room for 24" in notice.text


def test_long_rope_stays_on_the_short_side_of_its_switch(tmp_path: Path) -> None:
    from transformers import Phi3Config

    rope = {"rope_type": "longrope", "short_factor": [1.0] * 4, "long_factor": [1.5, 2.0, 3.0, 4.0]}
    model = folder(tmp_path, Phi3Config, sliding_window=None, original_max_position_embeddings=40, rope_scaling=rope)
    learner = trainer(tmp_path, model=model, max_new_tokens=16)
    assert learner.policy.longest_prompt == 24
    assert play(learner, 0)["mismatch_kl"] < 1e-9
    with pytest.raises(InvalidManifest, match="long RoPE"):
        trainer(tmp_path, model=model, max_new_tokens=32)


# ── ids


def test_a_tokenizer_with_more_ids_than_embeddings_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidManifest, match="5 of the tokenizer's ids, up to 99, have no embedding"):
        trainer(tmp_path, model=folder(tmp_path, vocab_size=95))


def test_ids_of_a_prompt_without_an_embedding_are_left_out_and_counted() -> None:
    tokenizer = character_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<call>"]})
    tokenizer.split_special_tokens = False
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m.content }}{% if m.role == 'system' %}<call>{% endif %}{% endfor %}"
    )
    encoder = PromptEncoder(
        tokenizer, "file:///m", longest=64, embeddings=len(tokenizer) - 1, eos_token_ids=(), filler=0
    )
    encoder.check()
    asked = Prompt("x", (Message("system", "a"), Message("user", "b")))
    assert encoder(asked) == encoder(Prompt("x", (Message("user", "ab"),)))
    [notice] = encoder.notices()
    assert (notice.text, notice.count) == ("prompts lose ids for which the model has no embedding", 1)


def test_a_policy_that_is_only_exported_is_not_tried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = folder(tmp_path, MptConfig, d_model=32, n_layers=2, n_heads=4, max_seq_len=256)
    learner = trainer(tmp_path, model=model, lora={"rank": 2}, overlap=True)
    config, state = GRPOTrainer.prepare_export(learner.config, learner.state_dict())
    assert (config.only_exports, config.overlap, learner.config.only_exports) == (True, False, False)
    exported = GRPOTrainer(config, learner.context)
    exported.load_state_dict(state)
    assert (exported.parity.decoding, exported.notices()) == (None, [])


def test_a_prompt_does_not_end_with_an_end_of_sequence(tmp_path: Path) -> None:
    from tokenizers import processors

    tokenizer = character_tokenizer()
    tokenizer._tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A <eos>", special_tokens=[("<bos>", tokenizer.bos_token_id), ("<eos>", tokenizer.eos_token_id)]
    )
    learner = trainer(tmp_path, model=folder(tmp_path, tokenizer=tokenizer))
    ids = learner.policy.encode(Prompt("x", (Message("user", "1+1="),)))
    assert learner.decode(ids) == "1+1="
    assert ids[-1] not in learner.policy.eos_token_ids


def test_a_template_that_refuses_the_systems_message_is_named(tmp_path: Path) -> None:
    tokenizer = character_tokenizer()
    tokenizer.chat_template = (
        "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
        "{% for m in messages %}{{ m.content }}{% endfor %}"
    )
    learner = trainer(tmp_path, model=folder(tmp_path, tokenizer=tokenizer))
    with pytest.raises(InvalidManifest, match="roles system, user: System role not supported"):
        learner.policy.encode(Prompt("x", (Message("system", "Be short."), Message("user", "1+1="))))


# ── types


def test_the_type_is_one_that_the_device_computes_in(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu, mps = torch.device("cpu"), torch.device("mps")
    assert computing_type("auto", cpu) is computing_type("auto", mps) is torch.float32
    assert computing_type("bfloat16", cpu) is torch.bfloat16
    cuda = torch.device("cuda:0")
    monkeypatch.setattr(torch.cuda, "device", lambda device: torch.no_grad())
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "V100")
    for has_bfloat16, dtype in ((True, torch.bfloat16), (False, torch.float32)):
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation, has=has_bfloat16: has)
        assert computing_type("auto", cuda) is dtype
    with pytest.raises(InvalidManifest, match="V100 does not compute in bfloat16"):
        computing_type("bfloat16", cuda)
