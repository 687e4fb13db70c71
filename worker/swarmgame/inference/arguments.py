"""The keyword arguments that an architecture's forward takes."""

from __future__ import annotations

import inspect
from typing import Any

from torch import Tensor
from transformers.cache_utils import Cache


class Arguments:
    """The names by which a model's forward takes mask, positions and cache; what it does not take is left out."""

    def __init__(self, model: Any) -> None:
        taken = inspect.signature(model.forward).parameters
        self._takes_any = any(each.kind is inspect.Parameter.VAR_KEYWORD for each in taken.values())
        self._taken = frozenset(taken)
        self.is_recurrent = "cache_params" in taken
        """Whether no layer attends to earlier positions, so that decode steps need no mask of them."""
        self._cache = "cache_params" if self.is_recurrent else "past_key_values"

    def __contains__(self, name: str) -> bool:
        """Whether the forward names this argument."""
        return name in self._taken

    def cached(self, *, mask: Tensor | None, positions: Tensor, cache: Cache) -> dict[str, Any]:
        """Return the arguments of a pass that reads a cache and adds to it."""
        return self._known({"attention_mask": mask, "position_ids": positions, self._cache: cache, "use_cache": True})

    def uncached(self, positions: Tensor | None = None) -> dict[str, Any]:
        """Return the arguments of a pass over complete rows."""
        return self._known({"use_cache": False, **({} if positions is None else {"position_ids": positions})})

    def _known(self, given: dict[str, Any]) -> dict[str, Any]:
        return given if self._takes_any else {name: value for name, value in given.items() if name in self._taken}
