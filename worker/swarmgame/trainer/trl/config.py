"""The settings of the TRL trainer: its `with:` block, and what our own code reads of TRL's options.

Options that are not given have TRL's defaults, which only TRL knows; so the loss's settings are made from a GRPOConfig
of TRL (`settings_of`). Nothing here imports TRL.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import Field, ValidationError, model_validator

from swarmgame.errors import InvalidManifest
from swarmgame.trainer.grpo.config import GRPOConfig, PolicyConfig
from swarmgame.trainer.grpo.loss_options import LossOptions
from swarmgame.trainer.trl.options import PATH
from swarmgame_api.errors import Problem, Unquoted


class TrlConfig(PolicyConfig):
    """The `with:` block of `use: trl`: how the policy is sampled and loaded, and TRL's options."""

    options: dict[str, Any] = Field(default_factory=dict)
    """Options of TRL's GRPOConfig by their names there, with its defaults: `{loss_type: sapo, learning_rate: 1e-5}`.
    Loss, optimizer and schedule are TRL's; sampling, evaluation, checkpoints and reports are the swarm's, so their
    names are errors. `lr_scheduler_type` is `constant` if it is not given; others need `max_steps`, which is where the
    schedule ends. `vllm_importance_sampling_*` weigh the rollouts of other policies."""

    _export_changes: ClassVar[Mapping[str, Any]] = {"options": {}}

    @model_validator(mode="before")
    @classmethod
    def _has_no_critic(cls, given: Any) -> Any:
        found = [name for name in ("baseline", "critic") if isinstance(given, Mapping) and name in given]
        if found:
            raise ValueError(
                f"{found[0]} is an option of grpo: TRL's GRPOTrainer compares rewards within their group "
                "(options.scale_rewards), and has no value function. PPO is use: grpo with baseline: value"
            )
        return given


class TrlSettings(GRPOConfig):
    """What our own code reads of a configuration: that of `grpo` with the same loss."""

    loss_type: Literal["grpo", "dr_grpo", "dapo", "bnpo", "cispo", "luspo", "sapo", "vespo"] = Field(
        "dapo", alias="loss"
    )
    entropy_coef: float = 0.0

    @property
    def has_other_terms(self) -> bool:
        return super().has_other_terms or self.entropy_coef != 0


_FIELDS: Mapping[str, str] = {
    **{name: name for name in LossOptions.model_fields},
    "importance_mode": "vllm_importance_sampling_mode",
    "importance_cap": "vllm_importance_sampling_clip_max",
    "importance_floor": "vllm_importance_sampling_clip_min",
    "scale_rewards": "scale_rewards",
    "iterations": "num_iterations",
    "entropy_coef": "entropy_coef",
}
"""Fields of our settings, and their names in TRL's GRPOConfig."""


def settings_of(config: TrlConfig, arguments: Any) -> TrlSettings:
    """Return the settings of the code that this trainer shares with `grpo`.

    Args:
        arguments: a GRPOConfig of TRL; None for a policy that is only exported.

    Raises:
        InvalidManifest: a loss that is not known here, or options that contradict each other.
    """
    policy = {name: getattr(config, name) for name in PolicyConfig.model_fields}
    loss = {} if arguments is None else {field: getattr(arguments, name) for field, name in _FIELDS.items()}
    try:
        settings = TrlSettings(**policy, **loss, layout="padded", compile=False, sharding="none")
    except ValidationError as error:
        raise InvalidManifest(problems=tuple(map(_problem, error.errors(include_url=False)))) from error
    return settings.for_export(config.dtype) if config.only_exports else settings


def _problem(error: Any) -> Problem:
    """Return an error of our own settings under the names of TRL."""
    aliases = {info.alias or field: _FIELDS.get(field, "") for field, info in TrlSettings.model_fields.items()}
    place = str(error["loc"][0]) if error["loc"] else ""
    name = _FIELDS.get(place) or aliases.get(place)
    message = str(error["msg"]).removeprefix("Value error, ").removeprefix("Input should be ")
    for alias, other in aliases.items():
        if other and alias != alias.lower():
            message = re.sub(rf"\b{alias}\b", other, message)
    return Problem(f"{PATH}.{name}" if name else PATH, error["input"] if name else Unquoted("not possible"), message)
