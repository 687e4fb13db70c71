"""The names of TRL's options: those that are passed on to its GRPOConfig, and those that the swarm decides.

Nothing here imports TRL, which takes seconds. Invariant: a name is passed on, or refused with what to use instead;
none is dropped.
"""

from __future__ import annotations

from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import Any

from pydantic import TypeAdapter, ValidationError

from swarmgame_api.errors import UNKNOWN_FIELD, InvalidManifest, Problem
from swarmgame_api.validation_messages import did_you_mean

PATH = "spec.game.trainer.with.options"

PASSED: Mapping[str, Any] = {
    # the loss
    "loss_type": str,
    "epsilon": float,
    "epsilon_high": float | None,
    "delta": float | None,
    "beta": float,
    "use_bias_correction_kl": bool,
    "importance_sampling_level": str,
    "top_entropy_quantile": float,
    "entropy_coef": float,
    "mask_truncated_completions": bool,
    "off_policy_mask_threshold": float | None,
    "sapo_temperature_pos": float,
    "sapo_temperature_neg": float,
    "vespo_k_pos": float,
    "vespo_lambda_pos": float,
    "vespo_k_neg": float,
    "vespo_lambda_neg": float,
    "vllm_importance_sampling_mode": str,
    "vllm_importance_sampling_clip_max": float | None,
    "vllm_importance_sampling_clip_min": float | None,
    "scale_rewards": bool | str,
    "num_iterations": int,
    # optimizer and schedule
    "optim": str,
    "optim_args": str | None,
    "optim_target_modules": str | list[str] | None,
    "learning_rate": float,
    "weight_decay": float,
    "adam_beta1": float,
    "adam_beta2": float,
    "adam_epsilon": float,
    "max_grad_norm": float,
    "lr_scheduler_type": str,
    "lr_scheduler_kwargs": dict[str, Any] | None,
    "warmup_steps": float,
    "max_steps": int,
}
"""Options that training reads, with the type of their values."""

_OWNED: Mapping[str, str] = {
    "num_generations": "generations, beside options",
    "num_generations_eval": "evaluationGenerations, beside options",
    "max_completion_length": "maxNewTokens, beside options",
    "temperature": "temperature, beside options",
    "top_k": "topK, beside options",
    "top_p": "topP, beside options",
    "chat_template_kwargs": "chatTemplateKwargs, beside options",
    "bf16": "dtype, beside options",
    "fp16": "dtype, beside options",
    "gradient_checkpointing*": "gradientCheckpointing, beside options",
    "activation_checkpointing*": "gradientCheckpointing, beside options",
    "*batch_size*": "questionsPerRound and generations, or tokensPerMicroBatch for what is computed at once",
    "*accumulation_steps": "tokensPerMicroBatch, beside options",
    "steps_per_generation": "num_iterations: a round's rollouts are one batch",
    "num_train_epochs": "spec.game.maxRounds",
    "seed": "spec.game.seed",
    "data_seed": "spec.game.seed",
    "full_determinism": "spec.game.seed: a run that is resumed repeats itself",
    "output_dir": "the folder of the run",
    "save_*": "the checkpoints of the run",
    "load_best_model_at_end": "spec.game.evaluation and `swarmgame export`",
    "resume_from_checkpoint": "the checkpoints of the run, from which it resumes by itself",
    "push_to_hub": "spec.model.export",
    "hub_*": "spec.model.export",
    "report_to": "spec.observability.trackers",
    "log*": "spec.observability, and the archive of rollouts",
    "run_name": "metadata.name",
    "project": "spec.observability.trackers",
    "trackio_*": "spec.observability.trackers",
    "disable_tqdm": "the table of `swarmgame run`",
    "num_completions_to_print": "`swarmgame rollouts`",
    "eval_*": "spec.game.evaluation",
    "do_*": "spec.game.evaluation",
    "reward_weights": "the rewards of the game: `use: composite` adds several",
    "multi_objective_aggregation": "the rewards of the game: `use: composite` adds several",
    "use_vllm": "sampler, beside options",
    "vllm_importance_sampling_cap": "vllm_importance_sampling_clip_max",
    "vllm_*": "sampler, beside options",
    "use_transformers_*": "sampler, beside options",
    "transformers_*": "sampler, beside options",
    "min_p": "topK and topP, beside options",
    "repetition_penalty": "topK and topP, beside options",
    "generation_kwargs": "the options of sampling, beside options",
    "cache_implementation": "sampler, beside options",
    "model_init_kwargs": "spec.model, and dtype beside options",
    "trust_remote_code": "spec.model: code of a model is never executed",
    "use_cpu": "the devices of the peers",
    "dataloader_*": "the data of the game",
    "shuffle_dataset": "the data of the game",
    "remove_unused_columns": "the data of the game",
    "cast_lm_head_to_fp32": "dtype, beside options",
}
"""Names of TRL for what the swarm decides, as patterns, with what decides it."""

_WITHOUT_EFFECT: Mapping[str, str] = {
    "vllm_importance_sampling_correction": "rollouts of other policies always have importance weights",
    "fsdp*": "a peer of this trainer is one process",
    "ddp_*": "a peer of this trainer is one process",
    "deepspeed": "a peer of this trainer is one process",
    "accelerator_config": "a peer of this trainer is one process",
    "parallelism_config": "a peer of this trainer is one process",
    "disable_dropout": "the model's own dropout is always off",
    "use_adaptive_entropy": "rollouts of other peers would control it; entropy_coef is constant",
    "entropy_*": "it is of use_adaptive_entropy, which rollouts of other peers would control",
    "sync_ref_model": "the reference is the model as it was loaded",
    "ref_model_*": "the reference is the model as it was loaded",
    "router_aux_loss_coef": "rollouts of other peers would choose the experts that are balanced",
    "torch_compile*": "this trainer does not compile the model",
}
"""Names of TRL that have no place in a swarm, as patterns, with the reason."""

_TYPES = {name: TypeAdapter(kind) for name, kind in PASSED.items()}


def checked_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options with values of the right types: YAML reads `1e-5` as a text.

    Raises:
        InvalidManifest: every name that is not passed on, with what to use instead, and every value of a wrong type.
    """
    found: dict[str, Any] = {}
    problems = []
    for name, value in options.items():
        if name not in PASSED:
            problems.append(_refused(name, value))
            continue
        try:
            found[name] = _TYPES[name].validate_python(value)
        except ValidationError as error:
            problems.append(Problem(f"{PATH}.{name}", value, _expected(error)))
    if problems:
        raise InvalidManifest(problems=tuple(problems))
    return found


def _refused(name: str, value: Any) -> Problem:
    path = f"{PATH}.{name}"
    reason = next((text for pattern, text in _WITHOUT_EFFECT.items() if fnmatchcase(name, pattern)), None)
    if reason is not None:
        return Problem(path, value, f"no such option: {reason}")
    instead = next((text for pattern, text in _OWNED.items() if fnmatchcase(name, pattern)), None)
    if instead is not None:
        return Problem(path, value, f"no such option, because the swarm decides it: use {instead}")
    hint = did_you_mean(name, PASSED)
    known = "an option of TRL's GRPOConfig that changes an update"
    return Problem(path, UNKNOWN_FIELD, f"{known}{hint}" if hint else f"{known}: one of {', '.join(PASSED)}")


def _expected(error: ValidationError) -> str:
    text = str(error.errors(include_url=False)[0]["msg"]).removeprefix("Input should be ")
    return text[:1].lower() + text[1:]
