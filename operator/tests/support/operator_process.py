"""An operator as a process, with its output and its exit code."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from operators import eventually

COMMAND = ("-m", "swarmgame_operator.main")


class OperatorProcess:
    """A running process. Its output is in a file."""

    def __init__(self, process: asyncio.subprocess.Process, log: Path) -> None:
        self.process, self._log = process, log

    @property
    def output(self) -> str:
        return self._log.read_text(encoding="utf-8")

    async def logs(self, text: str, seconds: float = 120.0) -> None:
        """Wait until its output contains a text."""
        try:
            await eventually(lambda: text in self.output, seconds)
        except AssertionError as error:
            raise AssertionError(f"{text!r} is not in the output:\n{self.output}") from error

    async def port(self) -> int:
        """Return the port of /metrics and /readyz."""
        await self.logs('"serving"')
        found = re.search(r'"port": ?(\d+)', self.output)
        assert found is not None, self.output
        return int(found[1])

    def terminate(self) -> None:
        self.process.send_signal(signal.SIGTERM)

    async def exit_code(self, seconds: float = 150.0) -> int:
        """Wait for its end. Return the exit code.

        Raises:
            AssertionError: it does not end; with its output.
        """
        try:
            return await asyncio.wait_for(self.process.wait(), seconds)
        except TimeoutError:
            raise AssertionError(f"it does not end:\n{self.output}") from None


@asynccontextmanager
async def operator_process(
    directory: Path, kubeconfig: Path, *, command: tuple[str, ...] = COMMAND, **settings: str
) -> AsyncIterator[OperatorProcess]:
    """Run an operator, and kill it if it still runs when the block ends.

    Args:
        directory: for its output.
        settings: in small letters, without the prefix.
    """
    own = {"metrics_port": "0", "probe_port": "0", "progress_seconds": "0", "debounce_seconds": "0.02", **settings}
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("SWARMGAME_OPERATOR_")},
        "KUBECONFIG": str(kubeconfig),
        "PYTHONUNBUFFERED": "1",
        **{f"SWARMGAME_OPERATOR_{name.upper()}": value for name, value in own.items()},
    }
    log = directory / f"operator-{len(list(directory.glob('operator-*')))}.log"
    with log.open("wb") as file:
        process = await asyncio.create_subprocess_exec(
            sys.executable, *command, env=environment, stdout=file, stderr=file
        )
    try:
        yield OperatorProcess(process, log)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
