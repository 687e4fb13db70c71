"""Processes of their own that begin with the large imports made.

They are forks of one server for all tests of this process. It has one thread, which a fork needs. Importing torch and
transformers anew is most of the work of a short process.
"""

from __future__ import annotations

import multiprocessing
import os
import runpy
import subprocess
import sys
from functools import cache
from multiprocessing import forkserver
from multiprocessing.context import ForkServerContext
from pathlib import Path

import pytest

IMPORTED = [
    "swarmgame.models.warmstart",
    "swarmgame.trainer.grpo.trainer",
    "transformers.models.auto.modeling_auto",
    "transformers.models.llama.modeling_llama",
    "transformers.models.qwen2.modeling_qwen2",
]


@cache
def forks() -> ForkServerContext:
    """Start the server, and return the context whose processes are its forks."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(IMPORTED)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        patch.setenv("HF_HUB_OFFLINE", "1")
        forkserver.ensure_running()
    return context


def run_script(script: Path, *arguments: str, folder: Path, seconds: float) -> subprocess.CompletedProcess[str]:
    """Run a script as `python script arguments` would, and return its exit code and output.

    Args:
        folder: where its output is kept.
        seconds: after these it is killed.
    """
    output, errors = folder / "stdout.txt", folder / "stderr.txt"
    process = forks().Process(target=_become, args=(script, arguments, output, errors))
    process.start()
    process.join(seconds)
    process.kill()
    process.join()
    assert process.exitcode is not None
    return subprocess.CompletedProcess(arguments, process.exitcode, output.read_text(), errors.read_text())


def _become(script: Path, arguments: tuple[str, ...], *outputs: Path) -> None:
    for descriptor, path in enumerate(outputs, start=1):
        with path.open("wb") as file:
            os.dup2(file.fileno(), descriptor)
    sys.argv = [str(script), *arguments]
    added = ("support", "hack", "native-cluster")  # folders that pytest adds, and a user's Python does not have
    sys.path[:] = [each for each in sys.path if Path(each).name not in added]
    sys.path.insert(0, str(script.parent))
    runpy.run_path(str(script), run_name="__main__")
