"""Layers of the tests, and the fixtures that several packages' tests share (in e2e/support).

The layer of a test is its folder: `tests/unit`, `tests/oracle` and so on; games on a cluster are in `e2e`. Collecting
one folder imports nothing of the others.
"""

import operator
import os
from pathlib import Path

import pytest

pytest_plugins = ["api_servers", "clusters", "games"]

# Kernels run in Triton's interpreter where there is no CUDA device. Triton reads this when it is imported.
if not Path("/dev/nvidiactl").exists():
    os.environ.setdefault("TRITON_INTERPRET", "1")

# pytest imports operator/tests/… as parts of a package `operator`, which would replace the standard library's module
# for
# all later imports. With a path, the module counts as a package and stays.
operator.__path__ = [str(Path(__file__).parent / "operator")]  # type: ignore[attr-defined]

LAYERS = ("unit", "oracle", "processes", "attacks", "contracts", "gpu", "api")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--all-scorers", action="store_true", help="attack every scorer of reasoning-gym, not a selection")


def pytest_itemcollected(item: pytest.Item) -> None:
    """Mark a test with the layer of its folder, so that `-m` can choose too."""
    folders = item.path.relative_to(item.config.rootpath).parts
    layer = next((each for each in LAYERS if each in folders), "cluster" if folders[0] == "e2e" else None)
    if layer is None:
        raise pytest.UsageError(f"{item.path} has no layer: it is in none of the folders {', '.join(LAYERS)}")
    item.add_marker(layer)
