"""Numbers that are not finite: the layer that made them, and the end of a run that no step gets any further.

Every number of a model passes through its modules, so the first module whose output is not finite is where it began.
It is looked for only once something was not finite, in a pass of its own.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from swarmgame.errors import BadData

MOST_ROUNDS = 5
"""Rounds in a row without a step, because numbers were not finite, after which a run ends: the weights are those of
the last step, so more of the same follows.
"""


def first_module(model: nn.Module, inputs: Mapping[str, Any] | Tensor) -> str:
    """Return the first module whose output is not finite in a forward pass, and whether its weights are; for a message.

    Args:
        inputs: of the model, by name; or its one input.
    """
    with _recorded(model) as found, torch.no_grad():
        if isinstance(inputs, Tensor):
            model(inputs)
        else:
            model(**inputs)
    if not found:
        return "all layers are finite in a pass of its own"
    name, module = found[0]
    wrong = [key for key, value in module.named_parameters(recurse=False) if not bool(value.isfinite().all())]
    weights = f", of which {' and '.join(wrong)} is not finite" if wrong else ""
    return f"first in the output of {name or type(module).__name__}{weights}"


class SkippedSteps:
    """Rounds in a row without an optimizer step, because numbers were not finite."""

    def __init__(self) -> None:
        self._rounds = 0

    def add(self, *, steps: int, skipped: int, round: int) -> None:
        """Take note of a round.

        Args:
            steps: optimizer steps that were taken.
            skipped: steps and rollouts that were left out because their numbers were not finite.

        Raises:
            BadData: it is the last of `MOST_ROUNDS` in a row without a step.
        """
        if steps:
            self._rounds = 0
        elif skipped:
            self._rounds += 1
        if self._rounds >= MOST_ROUNDS:
            raise BadData(
                f"round {round}: gradients or log-probabilities were not finite in {self._rounds} rounds in a row, "
                "and the policy did not change. Likely cause: a learning rate that is too high, or numbers beyond the "
                "range of the weights' type. Lower learningRate, set maxGradNorm, use dtype float32, or begin with "
                "another model; the checkpoint of an earlier round is still good"
            )


@contextmanager
def _recorded(model: nn.Module) -> Iterator[list[tuple[str, nn.Module]]]:
    """Collect the modules whose output is not finite, in the order in which they end."""
    found: list[tuple[str, nn.Module]] = []

    def hook_of(name: str) -> Any:
        def hook(module: nn.Module, _: Any, output: Any) -> None:
            if not found and not all(bool(part.isfinite().all()) for part in _tensors(output)):
                found.append((name, module))

        return hook

    hooks = [module.register_forward_hook(hook_of(name)) for name, module in model.named_modules()]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()


def _tensors(output: Any) -> Iterator[Tensor]:
    if isinstance(output, Tensor):
        if output.is_floating_point():
            yield output
    elif isinstance(output, tuple | list):
        for part in output:
            yield from _tensors(part)
    elif isinstance(output, Mapping):
        for part in output.values():
            yield from _tensors(part)
