"""Anvil, as npm ships it, as a child process: the chain of mode Dev and of the tests.

Its chain id is 31337 by default, and its state can be kept in a file across restarts. The child does not outlive the
`with` block.
"""

from __future__ import annotations

import functools
import os
import platform
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Self

from swarmgame_chain.errors import BadChainUsage, ChainUnreachable
from swarmgame_common.parent_death import set_parent_death_signal
from swarmgame_common.sockets import host_and_port

CHAIN_ID = 31337
BINARY_VARIABLE = "SWARMGAME_ANVIL"
ETHER = 10**18
end_with_parent = functools.partial(set_parent_death_signal, signal.SIGTERM)
"""A `preexec_fn`: the child gets SIGTERM when the thread that started it ends."""


def find_anvil() -> Path:
    """Return the binary that SWARMGAME_ANVIL names, or the one in contracts/node_modules, or on the PATH.

    Raises:
        BadChainUsage: it is not installed; the message tells how to install it.
    """
    named = os.environ.get(BINARY_VARIABLE)
    machine = {"x86_64": "amd64", "aarch64": "arm64", "arm64": "arm64"}.get(platform.machine(), platform.machine())
    package = f"@foundry-rs/anvil-{platform.system().lower()}-{machine}"
    modules = Path(__file__).resolve().parents[1] / "node_modules" / package / "bin" / "anvil"
    on_path = shutil.which("anvil")
    for candidate in (named, modules, on_path):
        if candidate and Path(candidate).exists():
            return Path(candidate)
    raise BadChainUsage(f"anvil is not installed: run `make toolchain`, or name the binary in {BINARY_VARIABLE}")


def terminate(process: subprocess.Popen[bytes] | subprocess.Popen[str]) -> None:
    """Terminate a child, and kill it if it still runs after ten seconds."""
    process.terminate()
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


class AnvilStopped(ChainUnreachable):
    """It ended at its start: its port is taken, or it cannot read its state."""


class Anvil:
    """A running anvil.

    Args:
        options: anvil's own: `--no-mining`, `--block-time 1`, `--state FILE`.
        port: 0 takes a free one.
        chain_id: the chain's.
        follow: whether the kernel ends it with the thread that starts it, since a state file must not have two
            writers.
    """

    def __init__(
        self, *options: str, port: int = 0, chain_id: int = CHAIN_ID, host: str = "127.0.0.1", follow: bool = False
    ) -> None:
        self.port = port or _free_port()
        self.url = f"http://{host_and_port(host, self.port)}"
        self._before = end_with_parent if follow else None
        self._options: Sequence[str] = (
            *("--host", host, "--port", str(self.port), "--chain-id", str(chain_id)),
            *("--hardfork", "osaka", "--enable-tx-gas-limit", "--gas-limit", "60000000", "--accounts", "2", "--quiet"),
            *options,
        )
        self._process: subprocess.Popen[bytes] | None = None
        self._log: IO[bytes] | None = None

    @property
    def pid(self) -> int:
        """The child's process id; 0 when it does not run."""
        return self._process.pid if self._process else 0

    def start(self, timeout: float = 60.0) -> Self:
        """Starts it and waits until it answers.

        Raises:
            BadChainUsage: anvil is not installed.
            AnvilStopped: it ended at once.
            ChainUnreachable: it does not answer.
        """
        self._log = tempfile.TemporaryFile()  # noqa: SIM115  closed by stop
        self._process = subprocess.Popen(
            [find_anvil(), *self._options],
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=self._log,
            start_new_session=True,  # Ctrl-C reaches only the process that started it
            preexec_fn=self._before,
        )
        end = time.monotonic() + timeout
        while time.monotonic() < end:
            if self._process.poll() is not None:
                tail = self._log_tail()
                self.stop()
                raise AnvilStopped(f"anvil stopped at once: {tail}")
            if _answers(self.url):
                return self
            time.sleep(0.02)
        self.stop()
        raise ChainUnreachable(f"anvil does not answer after {timeout:.0f} seconds")

    def stop(self) -> None:
        """Stop it; with `--state` it writes its state first."""
        if self._process is not None:
            terminate(self._process)
            self._process = None
        if self._log is not None:
            self._log.close()
            self._log = None

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _log_tail(self) -> str:
        if self._log is None:
            return ""
        self._log.seek(0)
        return self._log.read()[-500:].decode(errors="replace").strip() or "it printed nothing"


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def _answers(url: str) -> bool:
    body = b'{"jsonrpc":"2.0","id":1,"method":"eth_chainId","params":[]}'
    try:
        request = urllib.request.Request(url, data=body, headers={"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=2) as response:
            return bool(response.status == 200)
    except OSError:
        return False
