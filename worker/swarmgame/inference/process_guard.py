"""The guard of a server: runs a command in a process group of its own, and ends all of the group when the process that
started it is gone.

`python -S process_guard.py COMMAND …`, with a pipe as standard input that is never written to: its end, or another
parent, is the end of the process that started us, however it ended. vLLM's server has processes of its own, which a
signal to the server alone would leave on the GPU. Imports nothing but the standard library.
"""

import ctypes
import os
import select
import signal
import subprocess
import sys
import time

GRACE_SECONDS = 10.0
POLL_SECONDS = 0.1
_PR_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None, use_errno=True)


def main(command: list[str]) -> int:
    """Run the command; return its exit code, or 143 when it was ended."""
    stopping, parent = [False], os.getppid()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopping.__setitem__(0, True))
    child = subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True, preexec_fn=_die_with_us)
    try:
        while child.poll() is None:
            readable, _, _ = select.select([0], [], [], POLL_SECONDS)
            # The pipe alone is not enough: whatever the parent forked may hold it open.
            if stopping[0] or os.getppid() != parent or (readable and not os.read(0, 1)):
                signal_group(child.pid, signal.SIGTERM)
                deadline = time.monotonic() + GRACE_SECONDS
                while child.poll() is None and time.monotonic() < deadline:
                    time.sleep(POLL_SECONDS)
                return 143
        return child.returncode if child.returncode >= 0 else 128 - child.returncode
    finally:
        signal_group(child.pid, signal.SIGKILL)  # whatever the command left behind
        child.wait()


def _die_with_us() -> None:
    """Have the kernel kill the command, should this guard itself be killed. Between fork and exec: nothing but the
    call.
    """
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def signal_group(group: int, number: int) -> None:
    """Send a signal to a process group, if there is still one."""
    try:
        os.killpg(group, number)
    except ProcessLookupError:
        return


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
