"""hivemind without its deep learning: for a process that needs its p2p daemon and its DHT node, and no torch.

hivemind's own package imports everything it has, torch among it: 591 MB and three seconds for a node that keeps
addresses, 38 MB and a fraction of a second without (measured with hivemind 1.1.12). Here the packages stand empty, and
their modules are found as usual. Not for a peer: whatever needs torch imports hivemind as it is. Invariant: where
hivemind has been imported already, nothing changes.
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
"""What the modules that we use take from the package `hivemind.utils`, and where it is."""


def spare_torch() -> None:
    """From now on `hivemind.dht.node` and `hivemind.p2p` can be imported, and nothing else of hivemind comes with them."""
    if "hivemind" in sys.modules:
        return
    for name in ("hivemind", "hivemind.utils", "hivemind.dht"):
        _stand(name)
    vars(sys.modules["hivemind.utils"])["__getattr__"] = _found


def _stand(name: str) -> None:
    """Puts a package into place whose code is not run."""
    parent, _, child = name.rpartition(".")
    spec = PathFinder.find_spec(name, sys.modules[parent].__path__ if parent else None)
    if spec is None:
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    if parent:
        setattr(sys.modules[parent], child, module)


def _found(name: str) -> Any:
    if name not in NAMES:
        raise AttributeError(f"hivemind.utils stands empty here and has no {name!r}; see {__name__}")
    return getattr(importlib.import_module(f"hivemind.utils.{NAMES[name]}"), name)
