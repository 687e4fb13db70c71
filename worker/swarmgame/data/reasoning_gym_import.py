"""The import of reasoning-gym, without matplotlib: for the sandbox, which imports it in every peer.

cellpylib, which two datasets use, imports matplotlib for its plots: 40 % of the time of importing reasoning-gym.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from types import ModuleType
from typing import Any

PLOTS = (
    "matplotlib", "matplotlib.pyplot", "matplotlib.animation", "matplotlib.collections",
    "mpl_toolkits", "mpl_toolkits.mplot3d",
)  # fmt: skip
"""What cellpylib 2.4 imports for its plots."""


@cache
def factory() -> Any:
    """Return the module `reasoning_gym.factory`, in which all datasets are registered."""
    try:
        with _without_plots():
            return _import_all()
    except ImportError:  # another version of cellpylib needs more of matplotlib than its names
        return _import_all()


def _import_all() -> Any:
    # Importing the first two registers the datasets.
    return [importlib.import_module(f"reasoning_gym{name}") for name in ("", ".composite", ".factory")][-1]


@contextmanager
def _without_plots() -> Iterator[None]:
    """Replace matplotlib by modules in which every name is None, unless it has been imported."""
    modules = {name: ModuleType(name) for name in ([] if "matplotlib" in sys.modules else PLOTS)}
    for name, module in modules.items():
        vars(module)["__getattr__"] = lambda name: None
        parent, _, child = name.rpartition(".")
        if parent:
            setattr(modules[parent], child, module)
    sys.modules.update(modules)
    try:
        yield
    finally:
        for name in modules:
            sys.modules.pop(name, None)
