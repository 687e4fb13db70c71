"""The losses and advantages against TRL's GRPOTrainer: same batch, same options, same loss and gradients."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

from swarmgame.trainer.grpo.advantages import Scale, ragged_advantages
from swarmgame.trainer.grpo.logprobs import completion_logprobs
from swarmgame.trainer.grpo.loss import LossInputs, LossOptions, Normalizer, importance_weights, loss
from swarmgame.trainer.grpo.samples import TrainingSample, trained_mask

PAD, EOS, VOCABULARY, TEMPERATURE, LONGEST = 0, 1, 23, 0.8, 9
PROMPTS = [[5, 6, 7], [5, 6, 7], [8, 9, 10, 11, 12], [8, 9, 10, 11, 12], [3], [3]]
COMPLETIONS = [[4, 7, EOS], [9, 2, 13, 14, 15, 16, 17, 18, 19], [20, EOS], [6, 6, 21, 3, EOS], [22], [2, 5, 8, EOS]]
TRUNCATED = [False, True, False, False, True, False]
ADVANTAGES = [1.2, -0.7, 0.0, -1.5, 0.4, 0.9]


@pytest.fixture(scope="module")
def tokenizer():
    vocabulary = {"<pad>": PAD, "<eos>": EOS} | {f"w{number}": number for number in range(2, VOCABULARY)}
    plain = Tokenizer(WordLevel(vocabulary, unk_token="<pad>"))
    plain.pre_tokenizer = Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=plain, pad_token="<pad>", eos_token="<eos>")


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tokenizer):
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        initializer_range=0.4,
        bos_token_id=None,
        eos_token_id=EOS,
        pad_token_id=PAD,
    )
    path = tmp_path_factory.mktemp("tiny")
    Qwen2ForCausalLM(config).save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


def trl_trainer(folder, tokenizer, reward=lambda completions, **_: [0.0] * len(completions), **options):
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer

    arguments = GRPOConfig(
        output_dir=str(folder / "out"),
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        report_to="none",
        per_device_train_batch_size=6,
        num_generations=options.pop("num_generations", 2),
        steps_per_generation=1,
        max_completion_length=LONGEST,
        temperature=TEMPERATURE,
        disable_dropout=True,
        **options,
    )
    trainer = GRPOTrainer(
        model=Qwen2ForCausalLM.from_pretrained(folder, dtype=torch.float64),
        reward_funcs=reward,
        args=arguments,
        train_dataset=Dataset.from_dict({"prompt": ["w3 w4", "w5", "w6 w7 w8"]}),
        processing_class=tokenizer,
    )
    trainer.current_gradient_accumulation_steps = 1
    trainer.model.train()
    return trainer


def padded(rows, side, value):
    width = max(map(len, rows))
    return torch.tensor(
        [[value] * (width - len(row)) + row if side == "left" else row + [value] * (width - len(row)) for row in rows]
    )


def perturbed(seed, scale=0.25):
    """Noise for old or reference log-probabilities, so that ratios fall on both sides of every bound."""
    return scale * torch.randn(
        len(COMPLETIONS), max(map(len, COMPLETIONS)), dtype=torch.float64, generator=torch.Generator().manual_seed(seed)
    )


OURS_ALONE = {"importance_mode", "importance_cap", "importance_floor"}
"""Options that TRL's trainer keeps to vLLM; its loss takes the finished weights."""

CASES = {
    "grpo": {"loss_type": "grpo"},
    "dr_grpo": {"loss_type": "dr_grpo"},
    "dapo": {"loss_type": "dapo", "epsilon_high": 0.28},
    "bnpo": {"loss_type": "bnpo"},
    "cispo": {"loss_type": "cispo", "epsilon_high": 1.1},
    "luspo": {"loss_type": "luspo", "importance_sampling_level": "sequence"},
    "luspo over tokens": {"loss_type": "luspo"},
    "sapo": {"loss_type": "sapo"},
    "sapo, sharper": {"loss_type": "sapo", "sapo_temperature_pos": 3.0, "sapo_temperature_neg": 5.0},
    "vespo": {"loss_type": "vespo"},
    "sequence ratios": {
        "loss_type": "grpo",
        "importance_sampling_level": "sequence",
        "epsilon": 0.05,
        "epsilon_high": 0.06,
    },
    "sequence ratios over tokens": {"loss_type": "dapo", "importance_sampling_level": "sequence", "epsilon": 0.05},
    "two-sided": {"loss_type": "dapo", "epsilon": 0.1, "delta": 1.2},
    "kl": {"loss_type": "grpo", "beta": 0.3},
    "kl, biased": {"loss_type": "dapo", "beta": 0.3, "use_bias_correction_kl": False},
    "kl, sequence ratios": {"loss_type": "grpo", "beta": 0.3, "importance_sampling_level": "sequence"},
    "high entropy only": {"loss_type": "dapo", "top_entropy_quantile": 0.37},
    "truncated masked, by tokens": {"loss_type": "dapo", "mask_truncated_completions": True},
    "truncated masked, by rollouts": {"loss_type": "grpo", "mask_truncated_completions": True},
    "off-policy mask": {"loss_type": "grpo", "off_policy_mask_threshold": 0.01},
    "everything": {
        "loss_type": "dapo",
        "epsilon": 0.1,
        "epsilon_high": 0.2,
        "delta": 1.3,
        "beta": 0.1,
        "top_entropy_quantile": 0.7,
        "mask_truncated_completions": True,
        "off_policy_mask_threshold": 0.05,
    },
}


def ours_and_theirs(folder, tokenizer, options, *, on_policy=False, sender_noise=None, sampled=None):
    """Loss and gradients of both, on models of the same weights.

    Args:
        sampled: for each completion, which ids the policy sampled; None: all. The others are an environment's.
    """
    trainer = trl_trainer(folder, tokenizer, **{key: value for key, value in options.items() if key not in OURS_ALONE})
    model = Qwen2ForCausalLM.from_pretrained(folder, dtype=torch.float64)
    our_options = LossOptions(**options)

    new, entropies, mask = completion_logprobs(model, PROMPTS, COMPLETIONS, TEMPERATURE, with_entropy=True)
    if sampled is not None:
        mask = trained_mask([sample_of(*row) for row in zip(COMPLETIONS, sampled, strict=True)], mask)
    old = None if on_policy else (new + perturbed(1)).detach()
    reference = (new + perturbed(2)).detach()
    importance = None
    if sender_noise is not None:
        importance = importance_weights(old, old + sender_noise, mask, our_options)
    inputs = LossInputs(
        logprobs_BT=new,
        old_logprobs_BT=old,
        advantages_B=torch.tensor(ADVANTAGES, dtype=torch.float64),
        mask_BT=mask,
        entropies_BT=entropies,
        reference_logprobs_BT=reference,
        truncated_B=torch.tensor(TRUNCATED),
        remote_importance_weights_BT=importance,
    )
    outputs = loss(inputs, our_options, Normalizer.of(inputs, our_options, LONGEST))
    outputs.loss.backward()

    completion_mask = padded([[1] * len(row) for row in COMPLETIONS], "right", 0)
    if our_options.mask_truncated_completions:
        completion_mask = completion_mask * (~torch.tensor(TRUNCATED)).int().unsqueeze(1)
    theirs = {
        "prompt_ids": padded(PROMPTS, "left", PAD),
        "prompt_mask": padded([[1] * len(row) for row in PROMPTS], "left", 0),
        "completion_ids": padded(COMPLETIONS, "right", PAD),
        "completion_mask": completion_mask,
        "advantages": torch.tensor(ADVANTAGES, dtype=torch.float64),
        "ref_per_token_logps": reference,
        "num_items_in_batch": completion_mask.sum(),
    }
    if sampled is not None:
        theirs["tool_mask"] = padded([list(map(int, row)) for row in sampled], "right", 1)
        theirs["num_items_in_batch"] = (completion_mask * theirs["tool_mask"]).sum()
    if old is not None:
        theirs["old_per_token_logps"] = old
    if importance is not None:
        trainer.use_vllm = trainer.vllm_importance_sampling_correction = True
        theirs["importance_sampling_ratio"] = trl_importance(old, old + sender_noise, completion_mask, our_options)
    expected = trainer._compute_loss(trainer.model, theirs)
    expected.backward()
    return outputs, model, expected, trainer.model, trainer


def trl_importance(old, sampling, mask, options):
    """TRL's vLLM correction, transcribed: in TRL it is no function of its own."""
    difference = (old - sampling) * mask
    if options.importance_mode.startswith("sequence"):
        difference = difference.sum(dim=-1, keepdim=True)
    ratio = torch.exp(difference)
    if options.importance_mode.endswith("truncate"):
        return torch.clamp(ratio, min=options.importance_floor, max=options.importance_cap)
    return ratio.masked_fill(
        (ratio < (options.importance_floor or -math.inf)) | (ratio > options.importance_cap), value=0.0
    )


def assert_equal(result):
    outputs, model, expected, trl_model, _ = result
    assert abs(expected.item()) > 1e-4, "a loss of nothing proves nothing"
    assert outputs.loss.item() == pytest.approx(expected.item(), abs=1e-5)
    largest = max(parameter.grad.abs().max().item() for parameter in trl_model.parameters())
    for (name, parameter), (_, other) in zip(model.named_parameters(), trl_model.named_parameters(), strict=True):
        difference = (parameter.grad - other.grad).abs().max().item()
        # fp32 on two different paddings: an absolute 1e-5 where gradients are of order one, and as much of the largest
        # where they are not.
        assert difference < 1e-5 * max(1.0, largest), f"{name}: {difference} with gradients up to {largest}"
    assert largest > 1e-3, "gradients of nothing prove nothing"


def sample_of(completion, sampled):
    return TrainingSample((5,), tuple(completion), 0.0, truncated=False, trained=tuple(sampled))


SAMPLED = [[True, False, True], [True] * 3 + [False] * 4 + [True] * 2, [True, True], [True, False, False, True, True]]
SAMPLED += [[True], [True, True, False, True]]
"""Turns of the policy with observations between them."""


@pytest.mark.parametrize("case", CASES)
def test_loss_and_gradients_of_transcripts_equal_those_of_trls_environments(folder, tokenizer, case):
    assert_equal(ours_and_theirs(folder, tokenizer, CASES[case], sampled=SAMPLED))


@pytest.mark.parametrize("case", CASES)
def test_loss_and_gradients_equal_trl(folder, tokenizer, case):
    assert_equal(ours_and_theirs(folder, tokenizer, CASES[case]))


def test_without_old_logprobs_the_ratio_is_one_as_in_trl(folder, tokenizer):
    assert_equal(ours_and_theirs(folder, tokenizer, {"loss_type": "grpo"}, on_policy=True))


def test_gspo_is_trls_grpo_with_sequence_ratios(folder, tokenizer):
    theirs = {"loss_type": "grpo", "importance_sampling_level": "sequence", "epsilon": 0.03, "epsilon_high": 0.04}
    expected = ours_and_theirs(folder, tokenizer, theirs)[2].item()
    inputs_loss = gspo_loss(folder)
    assert inputs_loss == pytest.approx(expected, abs=1e-5)


def gspo_loss(folder):
    model = Qwen2ForCausalLM.from_pretrained(folder, dtype=torch.float64)
    new, _, mask = completion_logprobs(model, PROMPTS, COMPLETIONS, TEMPERATURE, with_entropy=False)
    options = LossOptions(loss_type="gspo", epsilon=0.03, epsilon_high=0.04)
    inputs = LossInputs(new, (new + perturbed(1)).detach(), torch.tensor(ADVANTAGES, dtype=torch.float64), mask)
    return loss(inputs, options, Normalizer.of(inputs, options, LONGEST)).loss.item()


@pytest.mark.parametrize(
    ("loss_type", "mode"),
    [
        *((loss_type, mode) for loss_type in ("dapo", "grpo") for mode in ("sequence_truncate", "sequence_mask")),
        *((loss_type, mode) for loss_type in ("dapo", "grpo", "vespo") for mode in ("token_truncate", "token_mask")),
    ],
)
def test_remote_rollouts_are_weighted_as_trl_weights_those_of_vllm(folder, tokenizer, loss_type, mode):
    options = {"loss_type": loss_type, "importance_mode": mode, "importance_cap": 1.3, "importance_floor": 0.5}
    assert_equal(ours_and_theirs(folder, tokenizer, options, sender_noise=perturbed(3, 0.5)))


def test_metrics_equal_trls(folder, tokenizer):
    outputs, *_, trainer = ours_and_theirs(folder, tokenizer, {"loss_type": "dapo", "beta": 0.3})
    logged = {name: values[-1] for name, values in trainer._metrics["train"].items()}
    assert outputs.metrics["entropy"].value == pytest.approx(logged["entropy"], abs=1e-5)
    assert outputs.metrics["kl"].value == pytest.approx(logged["kl"], abs=1e-5)
    assert outputs.metrics["clip_low"].value == pytest.approx(logged["clip_ratio/low_mean"], abs=1e-6)
    assert outputs.metrics["clip_high"].value == pytest.approx(logged["clip_ratio/high_mean"], abs=1e-6)
    assert outputs.metrics["clip"].value == pytest.approx(logged["clip_ratio/region_mean"], abs=1e-6)
    assert outputs.metrics["clip"].value > 0


@pytest.mark.parametrize("scale", list(Scale))
def test_advantages_equal_trls_for_every_scale_rewards(folder, tokenizer, scale):
    given = [0.0, 1.0, 0.25, 0.5, 0.5, 0.5]

    def reward(completions, **_):
        return list(given)

    trainer = trl_trainer(folder, tokenizer, reward, scale_rewards=scale.value, num_generations=3)
    batch = [{"prompt": "w3 w4"}] * 3 + [{"prompt": "w6 w7 w8"}] * 3
    expected = trainer._generate_and_score_completions(copy.deepcopy(batch))["advantages"]
    ours = ragged_advantages([given[:3], given[3:]], scale=scale, epsilon=1e-4)
    torch.testing.assert_close(torch.tensor(ours, dtype=torch.float32).flatten(), expected, atol=1e-5, rtol=0)
