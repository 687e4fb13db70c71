"""The sandbox's server without some of its defences: `python -m weakened_sandbox NAME…`.

A test shows with it that an attack works where a defence is missing.
"""

from __future__ import annotations

import ast
import dataclasses
import sys
from collections.abc import Callable, Sequence
from typing import ClassVar

from swarmgame.sandbox import batch, expressions, fork_server, landlock, privileges, seccomp, system_calls
from swarmgame.sandbox.client import Sandbox


def _without_guard() -> None:
    def parsed(text: str, names: object = None) -> ast.Expression:
        return ast.parse(text.strip(), mode="eval")

    expressions.parse = parsed


def _without_processes() -> None:
    make_calls = batch.BatchProcess.run

    def together(process: batch.BatchProcess) -> None:
        process._work = dataclasses.replace(process._work, together=True)
        make_calls(process)

    batch.BatchProcess.run = together  # type: ignore[method-assign]


def _without_seccomp() -> None:
    seccomp.install = seccomp.install_final = lambda: False


def _without_landlock() -> None:
    landlock.restrict = lambda readable: 0


def _without_signal_scope() -> None:
    landlock._SCOPES = 0


def _without_fcntl_rule() -> None:
    system_calls.ALLOWED["fcntl"] = system_calls.FCNTL["fcntl"]


def _without_dropping() -> None:
    privileges.drop = lambda user, keep_reading=False: False
    privileges.unprivileged_user = lambda folders: None


DEFENCES: dict[str, Callable[[], None]] = {
    "guard": _without_guard,
    "process per answer": _without_processes,
    "seccomp": _without_seccomp,
    "landlock": _without_landlock,
    "signal scope": _without_signal_scope,
    "fcntl rule": _without_fcntl_rule,
    "dropped privileges": _without_dropping,
}


def weakened(without: Sequence[str]) -> type[Sandbox]:
    """Return a sandbox without some defences, by name."""

    class Weakened(Sandbox):
        _server: ClassVar[Sequence[str]] = ("weakened_sandbox", *without)

    return Weakened


if __name__ == "__main__":
    for name in sys.argv[1:]:
        DEFENCES[name]()
    sys.setrecursionlimit(1000)
    fork_server.main()
