"""Options that several commands share, so that each is declared once and reads the same everywhere.

Importing this takes milliseconds: nothing here loads torch, hivemind or a game.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from swarmgame.errors import BadGame, BadUsage, InvalidManifest

if TYPE_CHECKING:
    from swarmgame.observability.run_directory import RunDirectory
    from swarmgame_api.manifest import SwarmGame

UsageError = cast("type[typer.BadParameter]", typer.BadParameter.__mro__[1])
"""Of the click that typer uses, which may be its own copy."""

Game = Annotated[
    Path,
    typer.Argument(metavar="GAME", help="The manifest, such as examples/01-quickstart/game.yaml.", show_default=False),
]
Overrides = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="PATH=VALUE",
        help="Change a field of the manifest: game.trainer.with.generations=4. May be repeated.",
    ),
]
Rounds = Annotated[
    int | None, typer.Option("--rounds", metavar="N", min=1, help="Play N rounds in all, instead of the manifest's.")
]
Run = Annotated[str, typer.Argument(metavar="RUN", help="Name of a run, or its folder.", show_default=False)]
Runs = Annotated[Path, typer.Option("--runs", metavar="DIR", help="Folder of all runs.")]
Threads = Annotated[
    int | None,
    typer.Option(
        "--threads",
        metavar="N",
        min=1,
        envvar="OMP_NUM_THREADS",
        help="Threads of torch and of the libp2p daemon. Default: all cores.",
    ),
]
Report = Annotated[bool, typer.Option("--report/--no-report", help="Write report.html and plots at the end.")]
IdentityFile = Annotated[
    Path | None,
    typer.Option("--identity", metavar="FILE", help="The peer's key; created when missing. Default: in its folder."),
]
Host = Annotated[
    str,
    typer.Option("--host", metavar="HOST", help="Address to listen on for other peers; :: for all, of IPv4 and IPv6."),
]
P2pPort = Annotated[
    int, typer.Option("--port", metavar="PORT", min=0, max=65535, help="Port for other peers; 0 takes any.")
]
HttpPort = Annotated[
    int,
    typer.Option(
        "--http-port", metavar="PORT", min=0, max=65535, help="Port of /healthz, /status and /metrics; 0 takes any."
    ),
]
InitialPeers = Annotated[
    list[str] | None,
    typer.Option(
        "--initial-peer",
        metavar="ADDRESS",
        help="Address of a member: /ip4/192.0.2.7/tcp/31000/p2p/16Uiu2HA… May be repeated.",
    ),
]
Anchors = Annotated[
    list[str] | None,
    typer.Option(
        "--anchor",
        metavar="ID",
        help="Id of a peer that you vouch for: it counts from the start, others after some complete rounds. May be "
        "repeated.",
    ),
]
Announce = Annotated[
    list[str] | None,
    typer.Option(
        "--announce",
        metavar="ADDRESS",
        help="Address at which other peers reach this one, if it does not listen there itself. May be repeated.",
    ),
]


def load_game(game: Path, overrides: Sequence[str] = ()) -> SwarmGame:
    """Read and check a manifest. A command does it once, before torch is loaded, and hands the result on."""
    from swarmgame_api.load import load_manifest

    return load_manifest(game, overrides)


def find_run(run: str, runs: Path) -> RunDirectory:
    """Return the folder of a run.

    Args:
        run: its name, or its folder.

    Raises:
        BadUsage: there is no such run; names those that there are.
    """
    from swarmgame.observability.run_directory import RunDirectory

    candidates = [folder for folder in (Path(run), runs / run) if (folder / "peers").is_dir()]
    if not candidates:
        known = sorted(path.name for path in runs.iterdir() if (path / "peers").is_dir()) if runs.is_dir() else []
        raise BadUsage(f"there is no run {run!r}; {runs} holds {', '.join(known) if known else 'none'}")
    return RunDirectory(candidates[0].absolute())


@contextmanager
def found_in(game: Path) -> Iterator[None]:
    """Name the manifest's file in errors that do not."""
    try:
        yield
    except InvalidManifest as error:
        raise (error if error.source else error.at(str(game))) from error.__cause__
    except BadGame as error:
        raise BadGame(f"{game}: {error}") from error.__cause__


def print_message(line: str) -> None:
    """Print a message to the user. Standard output is kept for results."""
    typer.echo(line, err=True)
