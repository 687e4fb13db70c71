"""Parent death: the kernel ends a process when the thread that started it ends (Linux).

A runner that is killed cannot stop its children. With this they end by themselves.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from collections.abc import Mapping

VARIABLE = "SWARMGAME_DIE_WITH_PARENT"
"""Set to 1, a `swarmgame` command ends with the process that started it."""
_PR_SET_PDEATHSIG = 1
# Loaded here: between fork and exec only the call itself is safe.
_LIBC = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None


def set_parent_death_signal(number: int = signal.SIGKILL) -> None:
    """Have the kernel send this process a signal when its parent ends. Safe as a `preexec_fn`."""
    if _LIBC is not None:
        _LIBC.prctl(_PR_SET_PDEATHSIG, number, 0, 0, 0)


def follow_parent(environment: Mapping[str, str] = os.environ) -> None:
    """Do so when the environment requests it."""
    if environment.get(VARIABLE) == "1":
        set_parent_death_signal()
