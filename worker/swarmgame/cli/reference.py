"""The reference of the command line, made from the commands.

`python -m swarmgame.cli.reference > docs/reference/cli.md`; a test checks that the file is current.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from enum import Enum
from typing import Any

from typer.main import get_command

from swarmgame.cli.main import app
from swarmgame.errors import ExitCode
from swarmgame.launch.pod_settings import PREFIX, WorkerPodSettings
from swarmgame_common.settings import settings_table

MEANINGS = {
    ExitCode.DONE: "done",
    ExitCode.INTERNAL: "an internal error; the traceback is shown",
    ExitCode.BAD_USAGE: "the command line or the environment is wrong",
    ExitCode.BAD_DATA: "a file that was given cannot be used: a checkpoint, a dataset, a key",
    ExitCode.TEMPORARY: "it may work if tried again: a peer is away, a port is taken, a rank died, a disk is full or "
    "read-only",
    ExitCode.REFUSED: "the swarm or the chain refuses this peer",
    ExitCode.BAD_CONFIG: "the manifest, or what it names, cannot be used (nothing was started), or the game's code "
    "fails each time",
    ExitCode.STOPPED: "stopped by Ctrl-C or SIGTERM; running again goes on",
}


def reference() -> str:
    """Return the text of `docs/reference/cli.md`."""
    root: Any = get_command(app)
    lines = [
        "# The command line",
        "",
        "This page is made by `python -m swarmgame.cli.reference > docs/reference/cli.md`.",
        "",
        "## Exit codes",
        "",
    ]
    lines += [
        "Results go to standard output, everything else to standard error.",
        "",
        "| code | meaning |",
        "|---|---|",
    ]
    lines += [f"| {int(code)} | {meaning} |" for code, meaning in MEANINGS.items()]
    for path, command in _commands(root, "swarmgame"):
        lines += ["", f"## {path}", "", *_help(command), *_parameters(command)]
    lines += [
        "",
        "## Environment of a pod",
        "",
        "`swarmgame pod` takes these variables; a bootnode's key is `/etc/swarmgame/identity/bootnode.key`.",
        "`SWARMGAME_CACHE`, `SWARMGAME_MODEL_TOKEN_FILE` and `SWARMGAME_CHAIN_*` hold for every command.",
        "",
        *settings_table(WorkerPodSettings, PREFIX),
    ]
    return "\n".join(lines) + "\n"


def _commands(group: Any, path: str) -> Iterator[tuple[str, Any]]:
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from _commands(command, f"{path} {name}")
        else:
            yield f"{path} {name}", command


def _help(command: Any) -> list[str]:
    """Return the paragraphs of the help; examples as a block of code."""
    text, _, examples = inspect.cleandoc(command.help or "").partition("[bold]Examples[/bold]")
    lines = re.sub(r"\[/?(bold|dim)\]", "", text).strip().splitlines()
    shown = [line.strip() for line in examples.splitlines() if line.strip()]
    return [*lines, "", *(["```", *shown, "```", ""] if shown else [])]


def _parameters(command: Any) -> list[str]:
    rows = [_row(parameter) for parameter in command.params if parameter.name != "help"]
    return ["| option | what it is | default | environment |", "|---|---|---|---|", *rows] if rows else []


def _row(parameter: Any) -> str:
    metavar = parameter.metavar or ""
    if not parameter.opts[0].startswith("-"):
        name = metavar
    else:
        names = "/".join([*parameter.opts, *parameter.secondary_opts])
        name = names if getattr(parameter, "is_flag", False) else f"{names} {metavar or _choices(parameter.default)}"
    default = "required" if parameter.required else _default(parameter.default)
    variables = [parameter.envvar] if isinstance(parameter.envvar, str) else list(parameter.envvar or ())
    return f"| `{name}` | {parameter.help or ''} | {default} | {', '.join(f'`{each}`' for each in variables)} |"


def _choices(default: Any) -> str:
    """Return the values of an enumeration, by its default."""
    return " or ".join(each.value for each in type(default)) if isinstance(default, Enum) else "VALUE"


def _default(value: Any) -> str:
    if value is None or value == "" or value is False:
        return ""
    return f"`{getattr(value, 'value', value)}`" if value is not True else "on"


if __name__ == "__main__":
    print(reference(), end="")
