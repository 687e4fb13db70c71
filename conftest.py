"""Fixtures that more than one area's tests use; they live in e2e/support."""

import operator
import os
from pathlib import Path

pytest_plugins = ["api_servers", "clusters", "games"]

# Kernels run in Triton's interpreter where there is no CUDA device. Triton reads this when it is imported.
if not Path("/dev/nvidiactl").exists():
    os.environ.setdefault("TRITON_INTERPRET", "1")

# pytest imports operator/tests/… as parts of a package `operator`, and would put that in the place of the standard library's module, for
# everything that is imported afterwards. With a path, the module is package enough to stay.
operator.__path__ = [str(Path(__file__).parent / "operator")]  # type: ignore[attr-defined]
