"""The settings of the GRPO trainer: its `with:` block, loss options included.

Settings that would fail later (a group of one, a schedule without an end) are errors here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import AfterValidator, Field, JsonValue, PrivateAttr, StringConstraints, model_validator

from swarmgame.config import Config
from swarmgame.inference.engines import SamplerChoice
from swarmgame.trainer.grpo.advantages import Scale
from swarmgame.trainer.grpo.loss_options import LossOptions
from swarmgame_api.sampler import DEFAULT_LORA_RANK, LARGEST_LORA_RANK, VllmOptions

_NO_VARIABLES = frozenset({"messages", "tools", "documents", "chat_template", "add_generation_prompt", "tokenize"})
"""Variables of templates that are set here, or for which there is no data."""


def _is_variable(name: str) -> str:
    if name in _NO_VARIABLES:
        raise ValueError(f"{name} is no variable of a template that can be set")
    return name


TemplateVariable = Annotated[
    str, StringConstraints(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$", max_length=64), AfterValidator(_is_variable)
]


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


class CriticOptions(Config):
    """The value function of `baseline: value`. Names and defaults are those of TRL's PPO."""

    gamma: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Discount a token: below 1, a reward counts less for tokens long before it."""
    lam: Annotated[float, Field(ge=0, le=1)] = 0.95
    """Lambda of GAE: 1 compares the reward with the value, 0 each value with the next. Less is less noise, and trusts
    the values more."""
    vf_coef: Annotated[float, Field(ge=0, le=100)] = 0.1
    """Weight of the value loss in the policy's own weights; 0: the head alone learns from it."""
    cliprange_value: Annotated[float, Field(gt=0)] | None = 0.2
    """How far an update may move a value before its gradient is cut; null: as far as it will."""
    learning_rate: Annotated[float, Field(ge=0, le=1)] = 1e-3
    """Of the head, by AdamW; it warms up and falls as that of the policy."""
    hidden: Annotated[int, Field(ge=0, le=65_536)] = 0
    """Width of a layer in the head; 0: the head is linear."""


class PolicyConfig(Config):
    """How a language model is sampled and loaded, whatever trains it."""

    generations: Annotated[int, Field(ge=2, le=4096)] = 8
    """Rollouts a prompt. A group of one has no advantage."""
    max_new_tokens: Annotated[int, Field(ge=1, le=131_072)] = 64
    """Budget of a rollout, EOS included. Longer rollouts of other peers are dropped."""
    max_prompt_tokens: Annotated[int, Field(ge=1)] = 4096
    """Longer prompts lose their beginning, and so do those for which the model's context has no room beside
    `maxNewTokens`; the warning `prompts-cut` counts them."""
    temperature: Annotated[float, Field(gt=0, le=10)] = 1.0
    """Divides the logits, when sampling and when training."""
    top_k: Annotated[int, Field(ge=0)] = 0
    """Sample among this many likeliest tokens; 0 means all."""
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Sample among the fewest tokens that together have this probability."""
    stop: Annotated[tuple[Annotated[str, Field(min_length=1, max_length=256)], ...], Field(max_length=16)] = ()
    """Strings that end a rollout, as EOS does: it ends with the token that completes the first of them, which stays in
    the text. Before `minNewTokens` they are ignored. vLLM stops there; the built-in samplers go on to EOS or
    `maxNewTokens`, and what is behind the string is cut."""
    chat_template_kwargs: dict[TemplateVariable, JsonValue] = Field(default_factory=dict)
    """Variables of the model's chat template: `{enable_thinking: false}`. One that the template does not read is an
    error."""
    rollouts_per_batch: Annotated[int, Field(ge=1)] = 512
    """At most this many rollouts are sampled at once. Halved, and kept so, when the device runs out of memory."""
    sampler: SamplerChoice = "auto"
    """`cudagraph` replays each step of decoding as one CUDA graph (Llama, Mistral, Qwen2, Qwen3, Seed-OSS, Granite,
    Phi-3, SmolLM3 and OLMo 2 models with full attention, adapters included; others are sampled as `eager` does);
    `eager` calls operation by operation, on any device. `auto`: `cudagraph` on a CUDA device. `{engine: vllm}`: a vLLM
    server, with the options below (see docs/guide/vllm.md)."""
    overlap: bool = False
    """Sample the next round's first stage while this round is scored and exchanged, with weights that are one round's
    update old; training weights such rollouts like those of another policy (`importanceMode`). Useful where a peer
    waits long for other peers or for its scorers."""
    evaluation_generations: Annotated[int, Field(ge=1, le=4096)] = 1
    """Rollouts a held-out question."""
    evaluation_temperature: Annotated[float, Field(ge=0, le=10)] = 0.0
    """For held-out questions; 0 takes the likeliest token."""

    update: Literal["per-round", "per-stage", "none"] = "per-round"
    """One optimizer step over all stages of a round, one a stage, or none: the policy then only samples."""
    tokens_per_micro_batch: Annotated[int, Field(ge=1)] | Literal["auto"] = "auto"
    """Prompt and completion tokens in one forward and backward pass, padding included where there is any. Halved, and
    kept so, when the device runs out of memory. `auto`: 32,768 where rows are packed, 16,384 elsewhere."""

    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Of the weights that compute. `auto`: bfloat16 on a CUDA device that computes in it, float32 elsewhere. The
    optimizer's copy is always float32.
    """
    gradient_checkpointing: bool = False
    """Compute activations twice instead of keeping them: less memory, a third more time."""
    lora: Lora | None = None
    """Train adapters only."""

    @property
    def has_external_engine(self) -> bool:
        """Whether rollouts are sampled in another process, from weights of its own."""
        return isinstance(self.sampler, VllmOptions)

    _only_exports: bool = PrivateAttr(default=False)

    @property
    def only_exports(self) -> bool:
        """Whether the policy is loaded only to be written again."""
        return self._only_exports

    _export_changes: ClassVar[Mapping[str, Any]] = {}
    """Further fields that change in `for_export`."""

    def for_export(self, dtype: str) -> Self:
        """Return the configuration of a policy that is only exported, without what only sampling and training use.

        Args:
            dtype: of the weights that trained.
        """
        plain = {"dtype": dtype, "sampler": "eager", "overlap": False, "gradient_checkpointing": False}
        copy = self.model_copy(update={**plain, **self._export_changes})
        copy._only_exports = True
        return copy

    @model_validator(mode="after")
    def _served(self) -> Self:
        if isinstance(self.sampler, VllmOptions) and self.lora is not None and self.lora.rank > LARGEST_LORA_RANK:
            raise ValueError(f"lora.rank is {self.lora.rank}; vLLM takes adapters of rank {LARGEST_LORA_RANK} at most")
        return self


class GRPOConfig(PolicyConfig, LossOptions):
    """The `with:` block of `use: grpo`: sampling, loss, advantages, update, precision."""

    min_new_tokens: Annotated[int, Field(ge=0)] = 0
    """EOS is not sampled before this length."""
    scale_rewards: Scale = Scale.GROUP
    """The divisor of centred rewards: their group's standard deviation, the update's, or nothing."""
    baseline: Literal["mean", "leave-one-out", "update", "none", "value"] = "mean"
    """What a reward is compared with: its group's mean; `leave-one-out`, the mean of the others in its group, not
    scaled (RLOO); `update`, the mean of the update's own rollouts (with `scaleRewards: batch` REINFORCE++, with `none`
    REINFORCE with a baseline); `none`, nothing (REINFORCE); `value`, a value function for each token (PPO: advantages
    by GAE, which `scaleRewards: batch` whitens over the update's own tokens; each turn's own reward counts where they
    add up to the rollout's)."""
    critic: CriticOptions | None = None
    """The value function, with `baseline: value`; its defaults if it is not given."""

    iterations: Annotated[int, Field(ge=1, le=64)] = 1
    """Steps over the same rollouts."""
    learning_rate: Annotated[float, Field(ge=0, le=1)] = 1e-4
    """Of AdamW. About 6e-4 suits the builtin model, 1e-6 to 1e-5 a real one, ten times that its adapters."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    """Of AdamW, decoupled. Matrices are decayed, embeddings too; norms and biases are not."""
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

    layout: Literal["auto", "padded", "packed"] = "auto"
    """`packed` trains on one sequence without padding, in which each prompt stands once (the models that `sampler`
    names, adapters included); `padded` on rectangles, with any model. `auto`: `packed` in bfloat16 on a
    CUDA device, where its kernels run; elsewhere `packed` is for tests, and takes memory for each pair of tokens."""

    compile: bool | Literal["auto"] = "auto"
    """Compile the decoder layers (torch.compile): slow to start, faster afterwards on an accelerator. `auto`: with the
    `packed` layout on a CUDA device, where the image has a C compiler."""
    sharding: Literal["auto", "none", "full"] = "auto"
    """`full` divides weights, gradients and optimizer among the processes of a peer (torch's FSDP2), and keeps one
    complete copy of the weights in each to sample from; `none` holds everything in each process. `auto`: `full` on
    CUDA devices where weights, gradients and optimizer take more than 70 % of one (24 bytes a parameter in bfloat16),
    but not with `lora`, unless vLLM samples. Without effect in a peer of one process."""

    _export_changes: ClassVar[Mapping[str, Any]] = {
        "layout": "padded",
        "compile": False,
        "beta": 0.0,
        "sharding": "none",
        "loss_type": "dapo",
        "baseline": "mean",
        "scale_rewards": Scale.GROUP,
        "critic": None,
    }

    @property
    def has_critic(self) -> bool:
        """Whether a value function gives the advantages."""
        return self.baseline == "value"

    @property
    def critic_options(self) -> CriticOptions:
        """`critic`, or its defaults."""
        return CriticOptions() if self.critic is None else self.critic

    @property
    def has_other_terms(self) -> bool:
        """Whether rollouts with an advantage of zero have a gradient too: that of the KL term."""
        return self.beta > 0

    @property
    def keeps_all_rollouts(self) -> bool:
        """Whether rollouts with an advantage of zero are in an update: they have a gradient, their entropies count, a
        loss of the author's own may use them, or values are learned from them.
        """
        return self.has_other_terms or self.needs_entropies or self.is_own_loss or self.has_critic

    @property
    def optimizer(self) -> Mapping[str, Any]:
        """Options of `Optimization`."""
        return {"betas": self.betas, "weight_decay": self.weight_decay, "max_grad_norm": self.max_grad_norm}

    @model_validator(mode="after")
    def _sensible(self) -> GRPOConfig:
        if self.schedule != "constant" and self.total_rounds is None:
            raise ValueError(f"schedule {self.schedule} needs totalRounds: where the learning rate reaches zero")
        if self.total_rounds is not None and self.total_rounds <= self.warmup_rounds:
            raise ValueError("totalRounds must be above warmupRounds")
        if self.min_new_tokens > self.max_new_tokens:
            raise ValueError("minNewTokens is above maxNewTokens")
        if self.baseline in ("update", "none", "value") and self.scale_rewards is Scale.GROUP:
            raise ValueError(
                f"baseline {self.baseline} compares nothing within a group: scaleRewards must be batch or none"
            )
        if self.critic is not None and not self.has_critic:
            raise ValueError(
                f"critic has no effect with baseline {self.baseline}: set baseline to value, or leave it out"
            )
        if self.has_critic:
            self._fits_token_advantages()
        return self

    def _fits_token_advantages(self) -> None:
        """Check that nothing needs one advantage a rollout."""
        suits = "baseline value gives each token an advantage of its own"
        if self.is_own_loss or self.loss_type in ("gspo", "luspo", "vespo"):
            one = "takes" if self.is_own_loss else "weighs a rollout by"
            raise ValueError(
                f"{suits}, and loss {self.loss_type} {one} one a rollout: use dapo, grpo, bnpo, dr_grpo, cispo or sapo"
            )
        if self.importance_sampling_level == "sequence":
            raise ValueError(f"{suits}, and importanceSamplingLevel sequence is one ratio a rollout: it must be token")
        if self.off_policy_mask_threshold is not None:
            raise ValueError(f"{suits}, and offPolicyMaskThreshold drops rollouts by the sign of theirs: leave it out")
