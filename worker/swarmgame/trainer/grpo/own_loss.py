"""A loss of the game author's own: `loss: "package.module:function"`.

The function takes `(inputs, options, normalizer)`, those of `loss.loss`, and returns a scalar tensor: the part of the
update's loss that this micro-batch has. It is tried once on small tensors before a game starts. What bounds other peers
does not depend on it: the advantages of their rollouts have every factor in them (share of the author, importance
weight, 0 for a refused one), so a loss that is proportional to the advantage is bounded as a built-in one is.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from swarmgame.errors import BadGame, InvalidManifest
from swarmgame.trainer.grpo.loss import LossInputs, LossOptions, LossOutputs, Normalizer, effective_mask, loss
from swarmgame.user_code import definition, describe, kind_of, short_path

PATH = "spec.game.trainer.with.loss"
Loss = Callable[[LossInputs, LossOptions, Normalizer], LossOutputs]
_REMOTE = 3
"""The rollout of another peer in the trial."""


def loss_function(options: LossOptions) -> Loss:
    """Return the built-in losses, or the author's function as one of them.

    Raises:
        InvalidManifest: it cannot be imported.
    """
    return _OwnLoss(options) if options.is_own_loss else loss


class _OwnLoss:
    """The author's function, with the metrics of the built-in losses but for those of clipping."""

    def __init__(self, options: LossOptions) -> None:
        self.name: str = options.loss_type
        self.function = _imported(self.name)
        self._measured = options.model_copy(update={"loss_type": "dapo"})

    @property
    def where(self) -> str:
        return short_path(definition(self.function)) or self.name

    def __call__(self, inputs: LossInputs, options: LossOptions, normalizer: Normalizer) -> LossOutputs:
        value = self.value(weighted(inputs), options, normalizer)
        with torch.no_grad():
            found = loss(replace(inputs, logprobs_BT=inputs.logprobs_BT.detach()), self._measured, normalizer).metrics
        return LossOutputs(value, {name: mean for name, mean in found.items() if not name.startswith("clip")})

    def value(self, inputs: LossInputs, options: LossOptions, normalizer: Normalizer) -> Tensor:
        """Return what the function returns, given a mask without the rollouts that do not count.

        Raises:
            BadGame: it raised, or returned no scalar with a gradient; with the author's lines.
        """
        try:
            counted = replace(inputs, mask_BT=effective_mask(inputs, options).bool())
            value: object = self.function(counted, options, normalizer)
        except torch.cuda.OutOfMemoryError:
            raise  # the trainer takes smaller micro-batches
        except Exception as error:
            found = describe(error, self.function)
            raise BadGame(f"{PATH} is {self.name}; it failed when it was called: {found}{found.below}") from error
        if not isinstance(value, Tensor) or value.dim() != 0:
            raise BadGame(f"{PATH} is {self.name}, at {self.where}; it returned {kind_of(value)}, no scalar tensor")
        if not value.requires_grad:
            raise BadGame(
                f"{PATH} is {self.name}, at {self.where}; it returned a tensor without a gradient: compute it from "
                "inputs.logprobs_BT, without detach or torch.no_grad"
            )
        return value


def weighted(inputs: LossInputs) -> LossInputs:
    """Return inputs whose advantages have the mean importance weight of their rollout in them, and no weights."""
    weights = inputs.remote_importance_weights_BT
    if weights is None:
        return inputs
    mask = inputs.mask_BT.float()
    means = (weights.float() * mask).sum(dim=1) / mask.sum(dim=1).clamp(min=1)
    return replace(inputs, advantages_B=inputs.advantages_B * means, remote_importance_weights_BT=None)


def try_loss(options: LossOptions) -> Sequence[str]:
    """Call the author's function on small tensors; a built-in loss is not tried.

    Returns:
        Warnings, as sentences, if other peers would have no bound.

    Raises:
        InvalidManifest: it cannot be imported.
        BadGame: it fails, or returns what is no scalar, not finite, or has no finite gradient.
    """
    if not options.is_own_loss:
        return ()
    own = _OwnLoss(options)
    full, half, without = (_gradient(own, options, scale) for scale in (1.0, 0.5, 0.0))
    name = f"{PATH} is {own.name}, at {own.where}"
    unbounded = "so spec.game.sharing.maxInfluence does not bound what rollouts of other peers do to an update"
    found = []
    if not torch.allclose(full - without, 2 * (half - without), rtol=1e-3, atol=1e-6):
        found.append(f"{name}: its gradient is not proportional to the advantage, {unbounded}")
    if bool(without[_REMOTE].any()):
        found.append(
            f"{name}: rollouts of other peers have a gradient where their advantage is 0, {unbounded}: multiply terms "
            "without the advantage by inputs.own_B"
        )
    return found


def _gradient(own: _OwnLoss, options: LossOptions, scale: float) -> Tensor:
    """Return the gradient of the log-probabilities [B, T], with advantages times `scale`."""
    generator = torch.Generator().manual_seed(1)
    logprobs = (-2 * torch.rand(4, 6, generator=generator)).requires_grad_()
    noise = 0.1 * torch.randn(4, 6, generator=generator)
    inputs = LossInputs(
        logprobs_BT=logprobs,
        old_logprobs_BT=(logprobs + noise).detach(),
        advantages_B=torch.tensor([1.0, -0.5, 0.0, 0.75]) * scale,
        mask_BT=torch.arange(6) < torch.tensor([[6], [4], [5], [1]]),
        entropies_BT=torch.rand(4, 6, generator=generator),
        reference_logprobs_BT=(logprobs - noise).detach() if options.beta > 0 else None,
        truncated_B=torch.tensor([True, False, False, False]),
        own_B=torch.arange(4) != _REMOTE,
    )
    longest = getattr(options, "max_new_tokens", 6)
    value = own.value(inputs, options, Normalizer.of(inputs, options, longest))
    if not bool(value.isfinite()):
        raise BadGame(f"{PATH} is {own.name}, at {own.where}; it returned {value.item()}, which is not finite")
    try:
        (gradient,) = torch.autograd.grad(value, logprobs)
    except RuntimeError as error:
        raise BadGame(
            f"{PATH} is {own.name}, at {own.where}; its gradient cannot be computed: {describe(error).message}"
        ) from error
    if not bool(gradient.isfinite().all()):
        raise BadGame(f"{PATH} is {own.name}, at {own.where}; its gradient is not finite")
    if bool(gradient.masked_fill(inputs.mask_BT, 0.0).any()):
        raise BadGame(
            f"{PATH} is {own.name}, at {own.where}; its gradient is not zero on padding: multiply by inputs.mask_BT"
        )
    if scale and not bool(gradient.any()):
        raise BadGame(f"{PATH} is {own.name}, at {own.where}; its gradient is zero for rollouts with an advantage")
    return gradient


def _imported(name: str) -> Callable[..., Any]:
    module, _, attribute = name.partition(":")
    try:
        found = getattr(importlib.import_module(module), attribute)
    except Exception as error:
        # An author's module may raise anything while it is imported.
        expected = "a function that can be imported: put its module beside the manifest, or on PYTHONPATH"
        raise InvalidManifest(PATH, name, f"{expected} ({describe(error)})") from error
    if not callable(found):
        raise InvalidManifest(PATH, name, f"a function; it is {kind_of(found)}")
    function: Callable[..., Any] = found
    return function
