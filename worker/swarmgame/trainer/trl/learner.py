"""TRL's GRPOTrainer over finished rollouts: the only module that uses TRL's private names.

TRL's trainer generates what it trains on, and has one padded batch a step. Here it gets micro-batches of a round's
rollouts instead, and its `compute_loss` computes their loss. Between its forward pass and its loss, `compare` says what
the pass is compared with: denominators, importance weights and advantages then need no pass of their own, and rollouts
of other peers have the same bounds as in `grpo`. Shapes: B rollouts, T completion tokens.

`HOOKS` are the names that this depends on. A TRL without one of them is refused by name when a game is checked.
"""

from __future__ import annotations

import inspect
import os
import random
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, fields
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
import trl
from datasets import Dataset
from torch import Tensor
from torch.nn import Parameter
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from trl import GRPOConfig, GRPOTrainer

from swarmgame.errors import InvalidManifest
from swarmgame.inference.arguments import Arguments
from swarmgame.trainer.grpo.loss import Normalizer
from swarmgame.trainer.grpo.policy import Policy
from swarmgame.trainer.trl.config import TrlConfig
from swarmgame.trainer.trl.options import PATH, checked_options

HOOKS: Mapping[str, tuple[str, ...]] = {
    "_get_per_token_logps_and_entropies": ("model", "input_ids", "attention_mask", "logits_to_keep"),
    "get_high_entropy_mask": ("entropies", "mask", "threshold"),
    "compute_loss": ("model", "inputs"),
    "_send_telemetry": (),
    "create_optimizer": (),
    "create_scheduler": ("num_training_steps", "optimizer"),
}
"""Methods of TRL's GRPOTrainer that are called or replaced, with the arguments that are used."""
_BY_ROLLOUT = frozenset({"grpo", "sapo", "dr_grpo", "luspo"})
"""Losses that TRL divides by rollouts; it divides the others by tokens."""
_WITHOUT_LENGTH = frozenset({"constant", "constant_with_warmup", "inverse_sqrt"})
_LAUNCHERS = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "ACCELERATE_", "PMI_", "OMPI_", "MV2_")
"""Variables of launchers, or how their names begin."""


@dataclass(frozen=True)
class Rows:
    """A micro-batch of rollouts.

    Args:
        prompts, completions: ids, one list a rollout; EOS belongs to the completion.
        trained: for each rollout, whether its tokens are trained on.
    """

    prompts: Sequence[Sequence[int]]
    completions: Sequence[Sequence[int]]
    trained: Sequence[bool]


@dataclass(frozen=True)
class Comparison:
    """What a forward pass is compared with.

    Args:
        old_BT: denominators of the ratio.
        advantages_B: one a rollout.
        weights_BT: importance weights, [B, T] or [B, 1]; None where all are 1.
        reference_BT: log-probabilities under the reference model; None without a KL term.
        own_B: bool, which rollouts are our own. The terms of the reference and of the entropy are for these alone.
    """

    old_BT: Tensor
    advantages_B: Tensor
    weights_BT: Tensor | None
    reference_BT: Tensor | None
    own_B: Tensor


Compare = Callable[[Tensor, Tensor], Comparison]
"""Called with log-probabilities [B, T], without gradient, and the mask of completions [B, T], bool."""


@dataclass(frozen=True)
class Result:
    """Args:
    loss: scalar with gradient: this micro-batch's part of the update's loss.
    logprobs_BT, entropies_BT: of the forward pass, without gradient.
    mask_BT: bool, the tokens that are trained on.
    measured: TRL's own metrics of the micro-batch, by TRL's names.
    """

    loss: Tensor
    logprobs_BT: Tensor
    entropies_BT: Tensor
    mask_BT: Tensor
    measured: Mapping[str, float]


@dataclass
class _Pass:
    """One call of `compute_loss`: what TRL reads after its forward pass is filled in once that is over."""

    inputs: dict[str, Any]
    compare: Compare
    mask_BT: Tensor
    entropy_threshold: float | None
    logprobs_BT: Tensor | None = None
    entropies_BT: Tensor | None = None


class _Arguments(GRPOConfig):  # type: ignore[misc]
    """TRL's configuration, for a model that is on its device already."""

    @property
    def place_model_on_device(self) -> bool:
        return False


class Learner(GRPOTrainer):  # type: ignore[misc]
    """TRL's trainer without its data, its generation and its loop."""

    pad_token_id: int = 0
    _now: _Pass | None = None

    def loss_of(self, rows: Rows, update: Normalizer, compare: Compare) -> Result:
        """Return a micro-batch's part of the loss of an update.

        Args:
            update: of all micro-batches of the update.
        """
        device = self.model.device
        mask = _padded([[1] * len(each) for each in rows.completions], 0, device)
        kept = mask * torch.tensor(rows.trained, device=device).unsqueeze(1)
        count, tokens = len(rows.completions), max(1, int(kept.sum()))
        # TRL divides by what one micro-batch holds and by the number of micro-batches: their product is what the update
        # holds, however it was cut.
        by_rollout = self.loss_type in _BY_ROLLOUT
        self.current_gradient_accumulation_steps = (
            max(1, update.rollouts) / count if by_rollout else max(1, update.tokens) / tokens
        )
        inputs = {
            "prompt_ids": _padded(rows.prompts, self.pad_token_id, device, left=True),
            "prompt_mask": _padded([[1] * len(each) for each in rows.prompts], 0, device, left=True),
            "completion_ids": _padded(rows.completions, self.pad_token_id, device),
            "completion_mask": mask,
            "tool_mask": kept,
            "num_items_in_batch": torch.tensor(float(tokens), device=device),
        }
        self._now = now = _Pass(inputs, compare, mask.bool(), update.entropy_threshold)
        was_training = self.model.training
        try:
            loss = self.compute_loss(self._forward, inputs)
        finally:
            self._now, self.model.training = None, was_training
        measured = {name: float(values[-1]) for name, values in self._metrics["train"].items() if values}
        self._metrics["train"].clear()
        if now.logprobs_BT is None or now.entropies_BT is None:
            raise RuntimeError(f"the loss of trl {trl.__version__} made no forward pass that this module saw")
        return Result(loss, now.logprobs_BT, now.entropies_BT, kept.bool(), measured)

    def _forward(self, **inputs: Any) -> Any:
        """Call the model with the positions that rows have without padding: some architectures count them."""
        base = getattr(self.model, "get_base_model", lambda: self.model)()
        if "position_ids" in Arguments(base):
            inputs["position_ids"] = (inputs["attention_mask"].cumsum(dim=1) - 1).clamp(min=0)
        return self.model(**inputs)

    def make_optimizer(self, masters: Mapping[int, Parameter]) -> tuple[Optimizer, LRScheduler]:
        """Return TRL's optimizer and schedule over other tensors than the model's, such as copies in float32.

        Args:
            masters: by the `id` of the model's parameter.

        Raises:
            InvalidManifest: the optimizer is not installed, or takes no steps of its own.
        """
        try:
            self.create_optimizer()
            left = dict(masters)
            for group in self.optimizer.param_groups:
                group["params"] = [left.pop(id(parameter)) for parameter in group["params"]]
        except (ValueError, TypeError, ImportError, KeyError) as error:
            raise _bad_optimizer(self.args, _first_line(error)) from error
        if left or not isinstance(self.optimizer, Optimizer) or hasattr(self.optimizer, "eval"):
            raise _bad_optimizer(self.args, "it does not step all weights, or keeps others for evaluation")
        self.create_scheduler(num_training_steps=max(1, self.args.max_steps), optimizer=self.optimizer)
        return self.optimizer, self.lr_scheduler

    # ── what TRL calls
    def _get_per_token_logps_and_entropies(self, *args: Any, **kwargs: Any) -> Any:
        logprobs, entropies, *others = super()._get_per_token_logps_and_entropies(*args, **kwargs)
        now = self._now
        if now is None:
            return (logprobs, entropies, *others)
        now.logprobs_BT, now.entropies_BT = logprobs.detach(), entropies.detach()
        found = now.compare(now.logprobs_BT, now.mask_BT)
        own = found.own_B.unsqueeze(1)
        now.inputs["advantages"] = found.advantages_B
        now.inputs["old_per_token_logps"] = found.old_BT
        weights = found.weights_BT
        now.inputs["importance_sampling_ratio"] = torch.ones_like(logprobs[:, :1]) if weights is None else weights
        if found.reference_BT is not None:
            # A distance to itself, whose gradient is exactly zero.
            now.inputs["ref_per_token_logps"] = torch.where(own, found.reference_BT, logprobs)
        # TRL divides by the number of micro-batches in training mode alone. The forward pass, which must not have the
        # noise of that mode, is over.
        self.model.training = True
        return (logprobs, torch.where(own, entropies, entropies.detach()), *others)

    def get_high_entropy_mask(self, entropies: Tensor, mask: Tensor, threshold: float) -> Tensor:
        """Return the tokens with the highest entropies, by the threshold of the complete update."""
        given = None if self._now is None else self._now.entropy_threshold
        if given is None:
            kept: Tensor = super().get_high_entropy_mask(entropies, mask, threshold)
            return kept
        return (entropies.detach().float() >= given) & mask.bool()

    def _send_telemetry(self) -> None:
        """Send nothing: a peer reports to nobody but its swarm."""


def missing_hooks() -> tuple[str, ...]:
    """Return the names that this module uses and the installed TRL does not have."""
    missing = []
    for name, arguments in HOOKS.items():
        method = getattr(GRPOTrainer, name, None)
        taken = inspect.signature(method).parameters if method is not None else {}
        if method is None or any(each not in taken for each in arguments):
            missing.append(name if method is None else f"{name}({', '.join(arguments)})")
    return tuple(missing)


def make_arguments(config: TrlConfig, device: str) -> Any:
    """Return TRL's GRPOConfig for the options of a game.

    Raises:
        InvalidManifest: an option or its value cannot be used, or the installed TRL has other names.
    """
    options = checked_options(config.options)
    known = {field.name for field in fields(GRPOConfig)}
    missing = [*missing_hooks(), *(f"GRPOConfig.{name}" for name in options if name not in known)]
    if missing:
        expected = f"a version of trl that this release knows: {trl.__version__} has no {', '.join(missing)}"
        raise InvalidManifest("spec.game.trainer.use", "trl", expected)
    _check_schedule(options)
    try:
        with _undisturbed(device):
            arguments = _Arguments(
                **{"lr_scheduler_type": "constant", **options},
                num_generations=config.generations,
                per_device_train_batch_size=config.generations,
                steps_per_generation=1,
                max_completion_length=config.max_new_tokens,
                temperature=config.temperature,
                use_cpu=torch.device(device).type == "cpu",
                bf16=False,
                gradient_checkpointing=False,
                router_aux_loss_coef=0.0,
                report_to="none",
                save_strategy="no",
                logging_strategy="no",
                disable_tqdm=True,
            )
    except (ValueError, TypeError, ImportError) as error:
        raise InvalidManifest(PATH, config.options, f"options that TRL takes: {_first_line(error)}") from error
    arguments._n_gpu = min(arguments._n_gpu, 1)  # others that it sees are of other peers
    return arguments


def _check_schedule(options: Mapping[str, Any]) -> None:
    kind, length = options.get("lr_scheduler_type", "constant"), options.get("max_steps", -1)
    if kind in ("reduce_lr_on_plateau", "greedy"):
        expected = "a schedule that is a function of the number of steps, such as cosine"
        raise InvalidManifest(f"{PATH}.lr_scheduler_type", kind, expected)
    if length <= 0 and (kind not in _WITHOUT_LENGTH or 0 < options.get("warmup_steps", 0) < 1):
        expected = (
            f"how many optimizer steps the schedule {kind} has, with its warm-up: rounds times num_iterations, "
            "times stages with update: per-stage (a schedule without an end is constant, constant_with_warmup or "
            "inverse_sqrt)"
        )
        raise InvalidManifest(f"{PATH}.max_steps", options.get("max_steps"), expected)


def make_learner(policy: Policy, arguments: Any, options: Mapping[str, Any]) -> Learner:
    """Return TRL's trainer around a policy, whose model, tokenizer and configuration stay as they are.

    Args:
        options: as the manifest has them, for messages.

    Raises:
        InvalidManifest: TRL cannot train the model.
    """
    device, beta = policy.context.device, arguments.beta
    model = policy.trained if policy.adapted is None else policy.adapted
    tokenizer = deepcopy(policy.tokenizer)
    if tokenizer.pad_token is None and tokenizer.eos_token is None:
        tokenizer.pad_token = tokenizer.convert_ids_to_tokens(policy.pad_token_id)
    try:
        with _undisturbed(device), _unchanged(policy.trained), TemporaryDirectory() as folder:
            arguments.output_dir = folder
            arguments.beta = 0.0  # with a KL term TRL would load a second model; the policy has the reference
            learner = Learner(
                model=model,
                args=arguments,
                reward_funcs=_not_called,
                train_dataset=Dataset.from_dict({"prompt": [""]}),
                processing_class=tokenizer,
            )
    except (ValueError, TypeError, ImportError, NotImplementedError) as error:
        expected = f"options with which TRL {trl.__version__} can train {type(policy.model).__name__}"
        raise InvalidManifest(PATH, dict(options), f"{expected}: {_first_line(error)}") from error
    arguments.beta = learner.beta = beta
    learner.pad_token_id = policy.pad_token_id
    # TRL's name for weights of rollouts that another engine sampled: what is multiplied is the ratio in the inputs.
    learner.use_vllm = learner.vllm_importance_sampling_correction = True
    return learner


@contextmanager
def _undisturbed(device: str) -> Iterator[None]:
    """Keep what TRL and accelerate change of the process: random states, the CUDA device, and warnings. They must not
    see the variables of a launcher either, since other peers of a closed world are no ranks of this trainer.
    """
    environment = dict(os.environ)
    for name in environment:
        if name.startswith(_LAUNCHERS):
            del os.environ[name]
    python, numbers = random.getstate(), np.random.get_state()
    is_cuda = torch.device(device).type == "cuda"
    current = torch.cuda.current_device() if is_cuda else 0
    try:
        with torch.random.fork_rng(devices=[current] if is_cuda else []), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numbers)
        for name in set(os.environ) - set(environment):
            del os.environ[name]
        os.environ.update(environment)
        if is_cuda:
            torch.cuda.set_device(current)


@contextmanager
def _unchanged(model: Any) -> Iterator[None]:
    """Keep a model's configuration, which TRL changes and an export writes."""
    found = [model.config, model.config.get_text_config(), getattr(model, "generation_config", None)]
    kept = [(each, dict(vars(each))) for each in found if each is not None]
    try:
        yield
    finally:
        for each, values in kept:
            vars(each).clear()
            vars(each).update(values)


def _padded(rows: Sequence[Sequence[int]], value: int, device: torch.device | str, *, left: bool = False) -> Tensor:
    width = max(map(len, rows))
    made = np.full((len(rows), width), value, dtype=np.int64)
    for line, row in zip(made, rows, strict=True):
        if left:
            line[width - len(row) :] = row
        else:
            line[: len(row)] = row
    return torch.from_numpy(made).to(device)


def _not_called(completions: Sequence[Any], **_: Any) -> list[float]:
    """Stand in for the rewards, which TRL requires: the swarm scores rollouts before they come here."""
    raise AssertionError("TRL called a reward function, and none is its own here")


def _bad_optimizer(arguments: Any, reason: str) -> InvalidManifest:
    expected = f"an optimizer of transformers that is installed and steps all weights, such as adamw_torch: {reason}"
    return InvalidManifest(f"{PATH}.optim", str(getattr(arguments.optim, "value", arguments.optim)), expected)


def _first_line(error: BaseException) -> str:
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__
