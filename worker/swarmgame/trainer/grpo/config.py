"""The settings of the GRPO trainer: its `with:` block, loss options included.

Settings that would fail later (a group of one, a schedule without an end) are errors here.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from swarmgame.config import Config
from swarmgame.inference.engines import SamplerChoice
from swarmgame.trainer.grpo.advantages import Scale
from swarmgame.trainer.grpo.loss_options import LossOptions
from swarmgame_api.sampler import DEFAULT_LORA_RANK, LARGEST_LORA_RANK, VllmOptions


class Lora(Config):
    """Train low-rank adapters (peft); the model's own weights do not change."""

    rank: Annotated[int, Field(ge=1, le=1024)] = DEFAULT_LORA_RANK
    """Inner dimension of the adapters."""
    alpha: Annotated[float, Field(gt=0)] = 32.0
    """The adapters' output is multiplied by `alpha / rank`."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """On the adapters' input, while training."""
    target_modules: tuple[str, ...] | Literal["all-linear"] = "all-linear"
    """Names of the layers that get an adapter; `all-linear` is every linear layer but the head."""


class GRPOConfig(LossOptions):
    """The `with:` block of `use: grpo`: sampling, loss, advantages, update, precision."""

    generations: Annotated[int, Field(ge=2, le=4096)] = 8
    """Rollouts a prompt. A group of one has no advantage."""
    max_new_tokens: Annotated[int, Field(ge=1, le=131_072)] = 64
    """Budget of a rollout, EOS included. Longer rollouts of other peers are dropped."""
    min_new_tokens: Annotated[int, Field(ge=0)] = 0
    """EOS is not sampled before this length."""
    max_prompt_tokens: Annotated[int, Field(ge=1)] = 4096
    """Longer prompts lose their beginning."""
    temperature: Annotated[float, Field(gt=0, le=10)] = 1.0
    """Divides the logits, when sampling and when training."""
    top_k: Annotated[int, Field(ge=0)] = 0
    """Sample among this many likeliest tokens; 0 means all."""
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Sample among the fewest tokens that together have this probability."""
    rollouts_per_batch: Annotated[int, Field(ge=1)] = 512
    """At most this many rollouts are sampled at once. Halved, and kept so, when the device runs out of memory."""
    sampler: SamplerChoice = "auto"
    """`cudagraph` replays each step of decoding as one CUDA graph (Llama, Qwen2 and Qwen3 models, adapters included;
    others are sampled as `eager` does); `eager` calls operation by operation, on any device. `auto`: `cudagraph` on a
    CUDA device. `{engine: vllm}`: a vLLM server, with the options below (see docs/guide/vllm.md)."""
    overlap: bool = False
    """Sample the next round's first stage while this round is scored and exchanged, with weights that are one round's
    update old; training weights such rollouts like those of another policy (`importanceMode`). Useful where a peer
    waits long for other peers or for its scorers."""
    evaluation_generations: Annotated[int, Field(ge=1, le=4096)] = 1
    """Rollouts a held-out question."""
    evaluation_temperature: Annotated[float, Field(ge=0, le=10)] = 0.0
    """For held-out questions; 0 takes the likeliest token."""

    scale_rewards: Scale = Scale.GROUP
    """The divisor of centred rewards: their group's standard deviation, the update's, or nothing."""
    baseline: Literal["mean", "leave-one-out"] = "mean"
    """What a reward is compared with: its group's mean, or the mean of the others in its group (not scaled)."""

    update: Literal["per-round", "per-stage", "none"] = "per-round"
    """One optimizer step over all stages of a round, one a stage, or none: the policy then only samples."""
    iterations: Annotated[int, Field(ge=1, le=64)] = 1
    """Steps over the same rollouts."""
    learning_rate: Annotated[float, Field(ge=0, le=1)] = 1e-4
    """Of AdamW. About 6e-4 suits the builtin model, 1e-6 to 1e-5 a real one, ten times that its adapters."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    """Of AdamW, decoupled."""
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = (0.9, 0.999)
    """Of AdamW."""
    max_grad_norm: Annotated[float, Field(gt=0)] | None = 1.0
    """Longer gradients are scaled down to this norm; null: never."""
    warmup_rounds: Annotated[int, Field(ge=0)] = 0
    """Rounds over which the learning rate rises from near zero."""
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    """What the learning rate does after the warm-up: stays, or falls to zero by `totalRounds`."""
    total_rounds: Annotated[int, Field(ge=1)] | None = None
    """Where the schedule ends; needed unless it is constant."""
    tokens_per_micro_batch: Annotated[int, Field(ge=1)] | Literal["auto"] = "auto"
    """Prompt and completion tokens in one forward and backward pass, padding included where there is any. Halved, and
    kept so, when the device runs out of memory. `auto`: 32,768 where rows are packed, 16,384 elsewhere."""
    layout: Literal["auto", "padded", "packed"] = "auto"
    """`packed` trains on one sequence without padding, in which each prompt stands once (Llama, Qwen2 and Qwen3 models
    with full attention, adapters included); `padded` on rectangles, with any model. `auto`: `packed` in bfloat16 on a
    CUDA device, where its kernels run; elsewhere `packed` is for tests, and takes memory for each pair of tokens."""

    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Of the weights that compute. `auto`: bfloat16 on an accelerator, float32 on a CPU. The optimizer's copy is
    always float32.
    """
    gradient_checkpointing: bool = False
    """Compute activations twice instead of keeping them: less memory, a third more time."""
    compile: bool | Literal["auto"] = "auto"
    """Compile the decoder layers (torch.compile): slow to start, faster afterwards on an accelerator. `auto`: with the
    `packed` layout on a CUDA device, where the image has a C compiler."""
    lora: Lora | None = None
    """Train adapters only."""

    @model_validator(mode="after")
    def _sensible(self) -> GRPOConfig:
        if self.schedule != "constant" and self.total_rounds is None:
            raise ValueError(f"schedule {self.schedule} needs totalRounds: where the learning rate reaches zero")
        if self.total_rounds is not None and self.total_rounds <= self.warmup_rounds:
            raise ValueError("totalRounds must be above warmupRounds")
        if self.min_new_tokens > self.max_new_tokens:
            raise ValueError("minNewTokens is above maxNewTokens")
        if isinstance(self.sampler, VllmOptions) and self.lora is not None and self.lora.rank > LARGEST_LORA_RANK:
            raise ValueError(f"lora.rank is {self.lora.rank}; vLLM takes adapters of rank {LARGEST_LORA_RANK} at most")
        return self
