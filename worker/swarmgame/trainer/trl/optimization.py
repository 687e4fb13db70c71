"""The optimizer and schedule of TRL's trainer, over float32 copies of the weights, for weights of any type.

The order of a step is that of transformers' Trainer: clip, step, then the schedule. Invariants are those of
`Optimization`: a step that would not be finite is not taken, and a training that continues from `state_dict` is equal
bit by bit.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from swarmgame.game.ranks import Ranks
from swarmgame.trainer.optimization import Optimization
from swarmgame.trainer.trl.learner import Learner


class TrlOptimization(Optimization):
    """TRL's optimizer over named parameters, on one rank.

    Args:
        parameters: the trained ones, by name; not sharded.
        max_grad_norm: 0 or less never clips, as in TRL.
    """

    def __init__(self, parameters: Mapping[str, Parameter], learner: Learner, *, max_grad_norm: float) -> None:
        super().__init__(parameters, max_grad_norm=max_grad_norm if max_grad_norm > 0 else None)
        masters = {id(parameter): self._masters[name] for name, parameter in parameters.items()}
        optimizer, self._schedule = learner.make_optimizer(masters)
        self._adam = optimizer  # its state is what the base class moves and clears

    @property
    def learning_rate(self) -> float:
        """Of the next step."""
        return float(self._adam.param_groups[0]["lr"])

    def step(self, learning_rate: float, ranks: Ranks, *, only_with_gradient: bool = False) -> float | None:
        """Clip and step, with the learning rate of TRL's schedule; see `Optimization.step`.

        Args:
            learning_rate: not used.
        """
        limit = math.inf if self._max_grad_norm is None else self._max_grad_norm
        norm = float(torch.nn.utils.clip_grad_norm_(list(self._masters.values()), limit))
        if math.isfinite(norm) and not (only_with_gradient and norm == 0):
            self._adam.step()
            self._schedule.step()
            self._copy_back()
        self.clear()
        return norm if math.isfinite(norm) else None

    def state_dict(self, *, keep: bool = True) -> dict[str, Any]:
        """Return weights, the optimizer's state by parameter name and the place in the schedule, as copies on the
        CPU.
        """
        state = super().state_dict(keep=keep)
        schedule = self._schedule.state_dict()
        state["schedule"] = {"steps": schedule["last_epoch"], "rates": [float(rate) for rate in schedule["_last_lr"]]}
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict({**state, "moments": {}})
        groups = self._adam.param_groups
        names = {id(master): name for name, master in self._masters.items()}
        order = [names[id(master)] for group in groups for master in group["params"]]
        moments, schedule = state["moments"], state["schedule"]
        for group, rate in zip(groups, schedule["rates"], strict=True):
            group["lr"] = rate
        saved = {
            place: {key: value.clone() if isinstance(value, Tensor) else value for key, value in moments[name].items()}
            for place, name in enumerate(order)
            if name in moments
        }
        self._adam.load_state_dict({"state": saved, "param_groups": self._adam.state_dict()["param_groups"]})
        steps = int(schedule["steps"])
        self._schedule.load_state_dict(
            {
                **self._schedule.state_dict(),
                "last_epoch": steps,
                "_step_count": steps + 1,
                "_last_lr": schedule["rates"],
            }
        )
