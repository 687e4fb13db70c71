"""The settings of the policy-gradient trainer: its `with:` block."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from swarmgame.config import Config


class PolicyGradientConfig(Config):
    """The `with:` block of `use: policy-gradient`."""

    actions: Annotated[int, Field(ge=2, le=65_536)]
    """Number of actions; an action is an index below it."""
    module: str = "mlp"
    """The policy: `mlp`, `cnn`, or `package.module:factory`. Called with `actions` and the options; returns a torch
    module from observations [B, …] to logits [B, actions]."""
    options: dict[str, Any] = Field(default_factory=dict)
    """Further arguments of the factory. `mlp`: inputs, hidden, layers. `cnn`: shape, channels, hidden."""
    generations: Annotated[int, Field(ge=1, le=65_536)] = 8
    """Actions a prompt."""
    evaluation_generations: Annotated[int, Field(ge=1)] = 1
    """Actions a held-out prompt."""
    evaluation_greedy: bool = True
    """Take the likeliest action on held-out prompts instead of sampling one."""
    baseline: Literal["group", "update", "none", "value"] = "group"
    """What a reward is compared with: the mean of its group, of our own actions of the update, nothing, or `value`:
    what a second network of the same module (with `actions: 1`) expects for the observation (actor-critic)."""
    value_learning_rate: Annotated[float, Field(gt=0, le=1)] | None = None
    """Of that network, by AdamW; null: `learningRate`."""
    scale: bool = False
    """Divide by the standard deviation of the compared rewards of our own actions in the update."""
    learning_rate: Annotated[float, Field(ge=0, le=1)] = 1e-3
    """Of AdamW."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    """Of AdamW, decoupled. Matrices are decayed; biases are not."""
    max_grad_norm: Annotated[float, Field(gt=0)] | None = 1.0
    """Longer gradients are scaled down to this norm; null: never."""
    entropy_bonus: Annotated[float, Field(ge=0)] = 0.0
    """Weight of the policy's entropy in the loss: it delays convergence."""
    importance_cap: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Largest importance weight of an action of another peer. At most 1: what cannot be verified only lowers it."""
    update: Literal["per-round", "per-stage", "none"] = "per-round"
    """One optimizer step over all stages of a round, one a stage, or none."""

    @model_validator(mode="after")
    def _sensible(self) -> PolicyGradientConfig:
        if self.value_learning_rate is not None and self.baseline != "value":
            raise ValueError(f"valueLearningRate has no effect with baseline {self.baseline}: set baseline to value")
        return self
