"""The optimizer: AdamW on float32 copies of the weights, for weights of any type.

Of sharded parameters (`shards.py`) each rank steps its own part, with the norm of the complete gradient. Invariants:
gradients of micro-batches add up in float32; a step that would not be finite is not taken; a training that continues
from `state_dict` is equal bit by bit; a state is that of complete tensors, whoever holds their parts.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from swarmgame.game.ranks import Ranks
from swarmgame.trainer.shards import complete, is_sharded, joined, norm_over_ranks, own_part, part_of


class Optimization:
    """AdamW, gradient accumulation and clipping over named parameters.

    Args:
        parameters: the trained ones, by name; all sharded, then in float32, or none. A parameter of lower precision
            gets a float32 master copy.
        weight_decay: of matrices; norms, biases and parameters marked `_no_weight_decay` (states of Mamba) have none,
            as with transformers' Trainer.
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
        self._is_sharded = any(map(is_sharded, self._parameters.values()))
        self._masters = {name: self._master(parameter) for name, parameter in self._parameters.items()}
        self._max_grad_norm = max_grad_norm
        exempt = {name for name, parameter in self._parameters.items() if weight_decay and not _is_decayed(parameter)}
        groups: list[dict[str, Any]] = [
            {"params": [master for name, master in self._masters.items() if name not in exempt]},
            {"params": [self._masters[name] for name in self._masters if name in exempt], "weight_decay": 0.0},
        ]
        self._adam: torch.optim.Optimizer = torch.optim.AdamW(
            [group for group in groups if group["params"]],
            lr=0.0,
            betas=betas,
            weight_decay=weight_decay,
            fused=True,
        )

    def _master(self, parameter: Parameter) -> Parameter:
        if self._is_sharded:
            return Parameter(own_part(parameter))  # its memory: a step is seen by the next pass
        return parameter if parameter.dtype == torch.float32 else Parameter(parameter.detach().float())

    @property
    def weights(self) -> Mapping[str, Tensor]:
        """The trained weights by name, in float32; not copies. Sharded ones are DTensors."""
        return self._parameters if self._is_sharded else self._masters

    def clear(self) -> None:
        """Clear all gradients."""
        for parameter in (*self._parameters.values(), *self._masters.values()):
            parameter.grad = None

    def accumulate(self) -> None:
        """Move the gradients of a backward pass to the float32 copies. Call it after each. Those of sharded parameters
        are summed where they are.
        """
        if self._is_sharded:
            return
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

    def step(self, learning_rate: float, ranks: Ranks, *, only_with_gradient: bool = False) -> float | None:
        """Sum the gradients of the ranks, clip, and step.

        Args:
            only_with_gradient: take no step where the gradient is exactly zero; it would be one on old moments alone.
                The same on all ranks.

        Returns:
            The norm of the gradient before clipping; None when it was not finite, and no step was taken.
        """
        masters = list(self._masters.values())
        if self._is_sharded:
            for name, parameter in self._parameters.items():
                self._masters[name].grad = None if parameter.grad is None else own_part(parameter.grad)
        for master in masters:
            if master.grad is None:  # a rank without rows must do the same arithmetic as the others
                master.grad = torch.zeros_like(master)
        limit = math.inf if self._max_grad_norm is None else self._max_grad_norm
        if self._is_sharded:  # their sums are taken in the backward pass
            norm = norm_over_ranks([master.grad for master in masters if master.grad is not None], ranks)
            torch.nn.utils.clip_grads_with_norm_(masters, limit, norm)
        else:
            if ranks.size > 1:
                ranks.sum_gradients(masters)
            norm = torch.nn.utils.clip_grad_norm_(masters, limit)
        for group in self._adam.param_groups:
            group["lr"] = learning_rate
        # The fused kernel leaves out the step where `found_inf` is 1 (torch.amp.GradScaler hands it over likewise):
        # the device decides, and the host need not wait for the norm before it queues the step.
        without = ~torch.isfinite(norm)
        if only_with_gradient:
            without = without | (norm == 0)
        self._adam.found_inf = without.to(torch.float32)  # type: ignore[attr-defined]
        is_first = not self._adam.state
        self._adam.step()
        self.clear()
        self._copy_back()
        measured = float(norm)
        if is_first and bool(without):  # moments that no step has filled
            self._adam.state.clear()
        return measured if math.isfinite(measured) else None

    def state_dict(self, *, keep: bool = True) -> dict[str, Any]:
        """Return weights and moments by parameter name, as copies on the CPU. A collective call where they are sharded.

        Args:
            keep: False where this rank only takes part: the tensors are then left out.
        """
        weights: dict[str, Tensor] = {}
        moments: dict[str, dict[str, Tensor]] = {}
        for name, master in self._masters.items():
            weight = complete(self._parameters[name]) if self._is_sharded else master
            state = {key: self._complete_moment(name, value) for key, value in self._adam.state.get(master, {}).items()}
            if keep:
                weights[name] = _copy(weight)
                if state:
                    moments[name] = {key: _copy(value) for key, value in state.items()}
        return {"weights": weights, "moments": moments}

    def _complete_moment(self, name: str, value: Tensor) -> Tensor:
        # The count of steps is a number without dimensions, the same on all ranks.
        return joined(value, self._parameters[name]) if self._is_sharded and value.dim() else value

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Load weights and moments.

        Raises:
            ValueError: the weights are of another model.
        """
        weights, moments = state["weights"], state["moments"]
        wrong = [n for n, p in self._parameters.items() if n not in weights or weights[n].shape != p.shape]
        if wrong or len(weights) != len(self._masters):
            raise ValueError(
                f"the saved weights are of another model: {len(weights)} tensors for {len(self._masters)}, "
                f"first differences: {wrong[:3]}"
            )
        with torch.no_grad():
            for name, master in self._masters.items():
                master.copy_(self._own_part(name, weights[name]))
        self._copy_back()
        self._adam.state.clear()
        for name, values in moments.items():
            master = self._masters[name]
            self._adam.state[master] = {
                key: self._own_part(name, value.detach()).to(master.device, torch.float32).clone()
                for key, value in values.items()
            }

    def _own_part(self, name: str, value: Tensor) -> Tensor:
        return part_of(value, self._parameters[name]) if self._is_sharded and value.dim() else value

    @torch.no_grad()
    def _copy_back(self) -> None:
        pairs = [
            (parameter, self._masters[name])
            for name, parameter in self._parameters.items()
            if self._masters[name] is not parameter and not self._is_sharded
        ]
        if pairs:
            torch._foreach_copy_([parameter for parameter, _ in pairs], [master for _, master in pairs])


def _is_decayed(parameter: Parameter) -> bool:
    return parameter.dim() >= 2 and not getattr(parameter, "_no_weight_decay", False)


def _copy(value: Any) -> Any:
    """Return a tensor as a copy on the CPU, and what some optimizers keep beside tensors as it is."""
    return value.detach().to("cpu", copy=True).contiguous() if isinstance(value, Tensor) else value
