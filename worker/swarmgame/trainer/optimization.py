"""The optimizer: AdamW on float32 copies of the weights, for weights of any type.

Invariants: gradients of micro-batches add up in float32; a step that would not be finite is not taken; a training that
continues from `state_dict` is equal bit by bit.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from swarmgame.game.ranks import Ranks


class Optimization:
    """AdamW, gradient accumulation and clipping over named parameters.

    Args:
        parameters: the trained ones, by name. A parameter of lower precision gets a float32 master copy.
        max_grad_norm: None never clips.
    """

    def __init__(
        self,
        parameters: Mapping[str, Parameter],
        *,
        betas: tuple[float, float] = (0.9, 0.999),
        weight_decay: float = 0.0,
        max_grad_norm: float | None = 1.0,
    ) -> None:
        self._parameters = dict(parameters)
        self._masters = {
            name: parameter if parameter.dtype == torch.float32 else Parameter(parameter.detach().float())
            for name, parameter in self._parameters.items()
        }
        self._max_grad_norm = max_grad_norm
        self._adam = torch.optim.AdamW(
            list(self._masters.values()), lr=0.0, betas=betas, weight_decay=weight_decay, fused=True
        )

    @property
    def weights(self) -> Mapping[str, Tensor]:
        """The trained weights by name, in float32; not copies."""
        return self._masters

    def clear(self) -> None:
        """Clear all gradients."""
        for parameter in (*self._parameters.values(), *self._masters.values()):
            parameter.grad = None

    def accumulate(self) -> None:
        """Move the gradients of a backward pass to the float32 copies. Call it after each."""
        first: tuple[list[Tensor], list[Tensor]] = ([], [])
        more: tuple[list[Tensor], list[Tensor]] = ([], [])
        for name, parameter in self._parameters.items():
            master = self._masters[name]
            if master is parameter or parameter.grad is None:
                continue
            totals, added = first if master.grad is None else more
            if master.grad is None:
                master.grad = torch.empty_like(master)
            totals.append(master.grad)
            added.append(parameter.grad)
            parameter.grad = None
        if first[0]:
            torch._foreach_copy_(*first)
        if more[0]:
            torch._foreach_add_(*more)

    def step(self, learning_rate: float, ranks: Ranks) -> float | None:
        """Sum the gradients of the ranks, clip, and step.

        Returns:
            The norm of the gradient before clipping; None when it was not finite, and no step was taken.
        """
        masters = list(self._masters.values())
        for master in masters:
            if master.grad is None:  # a rank without rows must do the same arithmetic as the others
                master.grad = torch.zeros_like(master)
        if ranks.size > 1:
            ranks.sum_gradients(masters)
        limit = math.inf if self._max_grad_norm is None else self._max_grad_norm
        norm = torch.nn.utils.clip_grad_norm_(masters, limit)
        for group in self._adam.param_groups:
            group["lr"] = learning_rate
        # The fused kernel leaves out the step where `found_inf` is 1 (torch.amp.GradScaler hands it over likewise):
        # the
        # device decides, and the
        # host need not wait for the norm before it queues the step.
        self._adam.found_inf = (~torch.isfinite(norm)).to(torch.float32)  # type: ignore[attr-defined]
        is_first = not self._adam.state
        self._adam.step()
        self.clear()
        self._copy_back()
        measured = float(norm)
        if math.isfinite(measured):
            return measured
        if is_first:  # moments that no step has filled
            self._adam.state.clear()
        return None

    def state_dict(self) -> dict[str, Any]:
        """Return weights and moments by parameter name, as copies on the CPU."""
        moments: dict[str, dict[str, Tensor]] = {}
        for name, master in self._masters.items():
            state = self._adam.state.get(master)
            if state:
                moments[name] = {key: _copy(value) for key, value in state.items()}
        return {"weights": {name: _copy(master) for name, master in self._masters.items()}, "moments": moments}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Load weights and moments.

        Raises:
            ValueError: the weights are of another model.
        """
        weights, moments = state["weights"], state["moments"]
        wrong = [n for n, m in self._masters.items() if n not in weights or weights[n].shape != m.shape]
        if wrong or len(weights) != len(self._masters):
            raise ValueError(
                f"the saved weights are of another model: {len(weights)} tensors for {len(self._masters)}, "
                f"first differences: {wrong[:3]}"
            )
        with torch.no_grad():
            for name, master in self._masters.items():
                master.copy_(weights[name])
        self._copy_back()
        self._adam.state.clear()
        for name, values in moments.items():
            master = self._masters[name]
            self._adam.state[master] = {
                key: value.detach().to(master.device, torch.float32).clone() for key, value in values.items()
            }

    @torch.no_grad()
    def _copy_back(self) -> None:
        pairs = [
            (parameter, self._masters[name])
            for name, parameter in self._parameters.items()
            if self._masters[name] is not parameter
        ]
        if pairs:
            torch._foreach_copy_([parameter for parameter, _ in pairs], [master for _, master in pairs])


def _copy(tensor: Tensor) -> Tensor:
    return tensor.detach().to("cpu", copy=True).contiguous()
