"""The process of a peer, as the supervisor sees it, and the plain way to start one: as a command.

`fork_server` has the quick way. Both give a process that leads a process group, ends with the process that started it,
and writes its output to a file.
"""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

from swarmgame.errors import writing
from swarmgame_common.parent_death import set_parent_death_signal


class ChildProcess(Protocol):
    """The part of `subprocess.Popen` that the supervisor uses."""

    @property
    def pid(self) -> int: ...

    def poll(self) -> int | None:
        """Return the exit code, negative for a signal; None while it runs."""

    def wait(self) -> int:
        """Wait for its end, and return the exit code."""

    def terminate(self) -> None:
        """Send SIGTERM, if it still runs."""


StartProcess = Callable[[Sequence[str], Mapping[str, str], Path], ChildProcess]
"""Starts a process from its command, its environment and the file to which its output is appended."""


def start_command(command: Sequence[str], environment: Mapping[str, str], output: Path) -> ChildProcess:
    """Start a command as a process of its own.

    Raises:
        NotWritable: its output cannot be written.
    """
    with writing(output):
        file = output.open("ab")
    with file:
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=file,
            env=dict(environment),
            start_new_session=True,  # Ctrl-C reaches only the runner, and the group can be killed as one
            preexec_fn=set_parent_death_signal,
        )
