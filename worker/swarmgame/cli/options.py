"""Options that several commands share, so that they read alike everywhere.

Invariant: importing this costs milliseconds; nothing here loads torch, hivemind or a game.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from swarmgame.errors import BadUsage, InvalidManifest

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
    int | None, typer.Option("--rounds", metavar="N", min=1, help="Play N rounds in all, whatever the manifest says.")
]
Runs = Annotated[Path, typer.Option("--runs", metavar="DIR", help="Folder of all runs.")]
InitialPeers = Annotated[
    list[str] | None,
    typer.Option(
        "--initial-peer",
        metavar="ADDRESS",
        envvar="SWARMGAME_INITIAL_PEERS",
        help="Address of a member: /ip4/192.0.2.7/tcp/31000/p2p/16Uiu2HA… May be repeated.",
    ),
]
Announce = Annotated[
    list[str] | None,
    typer.Option(
        "--announce",
        metavar="ADDRESS",
        envvar="SWARMGAME_ANNOUNCE",
        help="Address under which others reach us, when it is not the one that we listen on. May be repeated.",
    ),
]


@contextmanager
def found_in(game: Path) -> Iterator[None]:
    """Names the manifest's file in errors that do not."""
    try:
        yield
    except InvalidManifest as error:
        raise (error if error.source else error.at(str(game))) from error.__cause__


def checked_addresses(addresses: list[str] | None, option: str) -> tuple[str, ...]:
    """Addresses of peers.

    Raises:
        BadUsage: one is none.
    """
    from swarmgame.swarm.identity import split_address

    for address in addresses or ():
        try:
            split_address(address)
        except ValueError as error:
            raise BadUsage(f"{option} {error}") from error
    return tuple(addresses or ())


def say(line: str) -> None:
    """Tells the person at the terminal; standard output is kept for results."""
    typer.echo(line, err=True)
