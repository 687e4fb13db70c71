"""Import hivemind's p2p daemon and DHT node without torch, for a process that needs nothing else of it.

The package `hivemind` imports all its modules, torch among them: 591 MB and three seconds for a bootnode, 38 MB and a
fraction of a second without (hivemind 1.1.12). Here the packages' own code is not run, and their modules are found as
usual. Not for a peer: a process that needs torch imports hivemind as it is, and then nothing changes here.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from importlib.machinery import PathFinder
from typing import Any

NAMES = {
    "get_logger": "logging",
    "MSGPackSerializer": "serializer",
    "SerializerBase": "serializer",
    "get_dht_time": "timed_storage",
}
"""Names that the imported modules take from the package `hivemind.utils`, and the modules that define them."""


def stub_torch_imports() -> None:
    """Make `hivemind.dht.node` and `hivemind.p2p` importable without the rest of hivemind."""
    if "hivemind" in sys.modules:
        return
    for name in ("hivemind", "hivemind.utils", "hivemind.dht"):
        _install_stub(name)
    vars(sys.modules["hivemind.utils"])["__getattr__"] = _resolve


def _install_stub(name: str) -> None:
    """Put a package into `sys.modules` without running its code."""
    parent, _, child = name.rpartition(".")
    spec = PathFinder.find_spec(name, sys.modules[parent].__path__ if parent else None)
    if spec is None:
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    if parent:
        setattr(sys.modules[parent], child, module)


def _resolve(name: str) -> Any:
    if name not in NAMES:
        raise AttributeError(f"hivemind.utils is a stub here and has no {name!r}; see {__name__}")
    return getattr(importlib.import_module(f"hivemind.utils.{NAMES[name]}"), name)
