"""The options of the loss. Names and meaning are TRL's; the formulas are in `loss.py`.

A combination of options whose meaning would silently differ is an error here.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, StringConstraints, model_validator

from swarmgame.config import Config

LossType = Literal["grpo", "dr_grpo", "dapo", "bnpo", "cispo", "gspo", "luspo", "sapo", "vespo"]
OwnLoss = Annotated[str, StringConstraints(pattern=r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$", max_length=256)]
"""A function of the game's author, as `package.module:function`."""


class LossOptions(Config):
    """The loss. Names and meaning are TRL's, except `importance_*`, which TRL calls `vllm_importance_sampling_*`."""

    loss_type: LossType | OwnLoss = Field("dapo", alias="loss")
    """Which member of the family. `grpo`: mean over rollouts of the mean over tokens. `dapo`, `bnpo`: mean over the
    update's tokens. `dr_grpo`: sum over tokens divided by rollouts times the longest completion allowed. `gspo`:
    `grpo` with one ratio a rollout. `luspo`: sum over tokens, mean over rollouts. `cispo`: truncated ratio as a
    weight. `sapo`, `vespo`: soft gates instead of clipping. `package.module:function`: a loss of your own (see
    docs/guide/trainers.md)."""
    epsilon: Annotated[float, Field(ge=0, lt=1)] = 0.2
    """How far the ratio may fall below 1 (and rise above it, without `epsilonHigh`) before its gradient is cut."""
    epsilon_high: Annotated[float, Field(ge=0)] | None = None
    """How far the ratio may rise above 1. For `cispo`: the largest ratio itself, and then required (5.0 is usual)."""
    delta: Annotated[float, Field(gt=1)] | None = None
    """Two-sided clipping: bounds the ratio of rollouts with a negative advantage too. Must be above `1 + epsilon`."""
    beta: Annotated[float, Field(ge=0)] = 0.0
    """Weight of the KL divergence to the reference model; 0 means that no reference is loaded."""
    use_bias_correction_kl: bool = True
    """Multiply the KL term by the ratio, which makes its gradient that of the true reverse KL."""
    importance_sampling_level: Literal["token", "sequence"] = "token"
    """One ratio a token, or one a rollout (the geometric mean over its tokens). `gspo` is always `sequence`."""
    top_entropy_quantile: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Train only on this share of the tokens, those of the highest entropy."""
    mask_truncated_completions: bool = False
    """Do not train on rollouts that ended because the token budget ran out."""
    off_policy_mask_threshold: Annotated[float, Field(gt=0)] | None = None
    """Drop rollouts with a negative advantage whose mean log-ratio to their sampler exceeds this."""
    sapo_temperature_pos: Annotated[float, Field(gt=0)] = 1.0
    """`sapo`: sharpness of the gate for positive advantages."""
    sapo_temperature_neg: Annotated[float, Field(gt=0)] = 1.05
    """`sapo`: sharpness of the gate for the other ones."""
    vespo_k_pos: float = 2.0
    """`vespo`: exponent on the rollout's ratio for advantages of at least zero."""
    vespo_lambda_pos: float = 3.0
    """`vespo`: decay of the weight with that ratio."""
    vespo_k_neg: float = 3.0
    """`vespo`: the exponent for negative advantages."""
    vespo_lambda_neg: float = 2.0
    """`vespo`: the decay for negative advantages."""
    importance_mode: Literal["token_truncate", "token_mask", "sequence_truncate", "sequence_mask"] = "token_truncate"
    """Rollouts of other policies are weighted by p(ours) / p(theirs), per token or per rollout; weights out of bounds
    are truncated to the bound, or set to zero."""
    importance_cap: Annotated[float, Field(gt=0)] | None = 3.0
    """Largest such weight. Of rollouts of other peers it is at most 1: their claims cannot be verified."""
    importance_floor: Annotated[float, Field(ge=0)] | None = None
    """Smallest such weight."""

    @model_validator(mode="after")
    def _possible(self) -> LossOptions:
        if self.loss_type == "cispo" and self.epsilon_high is None:
            raise ValueError("loss cispo needs epsilonHigh: it is the largest ratio itself, for example 5.0")
        if self.delta is not None and self.delta <= 1 + self.upper:
            raise ValueError(
                f"delta is {self.delta}; expected more than 1 + epsilonHigh = {1 + self.upper:g}, "
                "or it would undo that bound"
            )
        if self.loss_type == "vespo" and self.importance_mode.startswith("sequence"):
            raise ValueError(
                "loss vespo sums token weights itself: importanceMode must be token_truncate or token_mask"
            )
        if (
            self.importance_floor is not None
            and self.importance_cap is not None
            and self.importance_floor > self.importance_cap
        ):
            raise ValueError("importanceFloor is above importanceCap")
        return self

    @property
    def is_own_loss(self) -> bool:
        """Whether the loss is a function of the game's author."""
        return ":" in self.loss_type

    @property
    def upper(self) -> float:
        """`epsilon_high`, or else `epsilon`."""
        return self.epsilon if self.epsilon_high is None else self.epsilon_high

    @property
    def ratio_level(self) -> Literal["token", "sequence"]:
        """`importance_sampling_level`, but for `gspo`, which is defined by one ratio a rollout."""
        return "sequence" if self.loss_type == "gspo" else self.importance_sampling_level

    @property
    def needs_entropies(self) -> bool:
        """Whether `LossInputs.entropies_BT` must be given."""
        return self.top_entropy_quantile < 1
