"""reasoning-gym is imported without matplotlib, and matplotlib is itself afterwards."""

from __future__ import annotations

import json
import subprocess
import sys

PROGRAM = """
import json, sys
from swarmgame.data.reasoning_gym_import import PLOTS, factory
count = len(factory().DATASETS)
left = [name for name in PLOTS if name in sys.modules]
used = {"cellpylib"} & set(sys.modules)
import matplotlib.pyplot
from mpl_toolkits.mplot3d import Axes3D
print(json.dumps([count, left, len(used), matplotlib.pyplot.plot.__name__, Axes3D.__name__]))
"""


def test_all_datasets_are_registered_without_matplotlib_which_can_be_imported_afterwards() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=120, check=True)
    assert json.loads(done.stdout) == [106, [], 1, "plot", "Axes3D"]
