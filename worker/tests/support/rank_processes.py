"""A script as every rank of a peer at once. One interpreter loads torch, and forks into the ranks: much quicker than
loading it in each.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from contextlib import suppress
from pathlib import Path

from swarmgame.launch.local_peers import free_ports

PRELUDE = """
import os, sys, torch, traceback
from pathlib import Path
from swarmgame.errors import Temporary
from swarmgame.runtime.ranks import ranks_from_environment
{imports}
torch.set_num_threads(1)

def play():
    ranks = ranks_from_environment(timeout_seconds=60)
{script}

children = []
for rank in range({size}):
    child = os.fork()
    if not child:
        os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank))
        try:
            play()
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    children.append(child)
print("codes", *[os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children])
"""


def run_ranks(
    script: str, size: int, *arguments: str | Path, imports: str = "", on_gpu: bool = False
) -> tuple[list[int], str]:
    """Run a script, in which `ranks` are those of the peer, as every rank; return the exit code of each, and all
    output.

    Args:
        arguments: the script's `sys.argv[1:]`.
        imports: statements before the fork; they must not use a CUDA device.
        on_gpu: each rank takes a device.
    """
    [port] = free_ports(1)
    environment = os.environ | {
        "WORLD_SIZE": str(size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join(filter(None, (str(Path(__file__).parent), os.environ.get("PYTHONPATH")))),
    }
    if not on_gpu:
        environment["CUDA_VISIBLE_DEVICES"] = ""
    code = PRELUDE.format(script=textwrap.indent(textwrap.dedent(script), "    "), size=size, imports=imports)
    command = [sys.executable, "-c", code, *map(str, arguments)]
    process = subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )
    try:
        output, _ = process.communicate(timeout=240)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # ranks that wait for one another outlive the first process
    codes = next((line for line in output.splitlines() if line.startswith("codes ")), None)
    assert codes is not None, output
    return [int(code) for code in codes.split()[1:]], output
