"""`swarmgame replay`: a peer's weights made again from its archive."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from swarmgame.cli.options import Run, Runs, find_run, load_game, print_message
from swarmgame.errors import BadUsage

if TYPE_CHECKING:
    from swarmgame.observability.run_directory import PeerDirectory
    from swarmgame.runtime.replay import Replay
    from swarmgame_api.manifest import SwarmGame


def replay(
    run: Run,
    peer: Annotated[int, typer.Option("--peer", metavar="N", min=0, help="The peer whose weights are made.")] = 0,
    rounds: Annotated[
        str, typer.Option("--rounds", metavar="A:B", help="Rounds A to B - 1; either may be left out. Default: all.")
    ] = "",
    game: Annotated[
        Path | None,
        typer.Option(
            "--game",
            metavar="GAME",
            help="The manifest beside the game's own modules, if it has been moved; for a peer's folder its manifest.",
        ),
    ] = None,
    runs: Runs = Path("runs"),
) -> None:
    """Make a peer's weights again, offline, from what it generated and received, and compare them after each round.

    Exit code 0: the weights are equal. 65: they differ, or the archive is damaged; the message names the round, and
    where it can the author, the group and the column. Runs on the machine and with the versions of the run only.

    [bold]Examples[/bold]

      swarmgame replay quickstart --peer 0

      swarmgame replay quickstart --peer 1 --rounds 100:120
    """
    first, end = _range(rounds)
    manifest, files = _peer(run, runs, peer, game)
    from swarmgame.runtime.replay import replay as run_replay

    folder = game.resolve().parent if game is not None else None
    shown = sys.stderr.isatty()

    def notify(line: str) -> None:
        if shown:
            typer.echo(f"\r{line} ", err=True, nl=False)

    found = run_replay(manifest, files, first=first, end=end, folder=folder, notify=notify)
    if shown:
        typer.echo("\r", err=True, nl=False)
    _print(found, peer, first)


def _peer(run: str, runs: Path, peer: int, game: Path | None) -> tuple[SwarmGame, PeerDirectory]:
    """Return the manifest and the folder of a peer: of a run, or of one that was started alone."""
    from swarmgame.observability.run_directory import PeerDirectory

    own = PeerDirectory(Path(run))
    if own.rollouts.is_dir():
        if game is None:
            raise BadUsage(f"{run} is the folder of one peer, without its manifest; give it with --game")
        return load_game(game), own
    directory = find_run(run, runs)
    peers = directory.peers()
    if peer not in peers:
        raise BadUsage(f"the run {directory.root.name} has no peer {peer}; it has {', '.join(map(str, peers))}")
    return load_game(directory.manifest), peers[peer]


def _range(given: str) -> tuple[int, int | None]:
    if not given:
        return 0, None
    match = re.fullmatch(r"(\d*):(\d*)", given)
    if match is None or (match[1] and match[2] and int(match[1]) >= int(match[2])):
        raise BadUsage(f"--rounds is {given}; expected A:B with A less than B, such as 100:120, 100: or :20")
    return int(match[1] or 0), int(match[2]) if match[2] else None


def _print(found: Replay, peer: int, first: int) -> None:
    from swarmgame.archive.signatures import Proof

    rounds = found.rounds
    begin = "the initial model" if found.start is None else f"the checkpoint of round {found.start}"
    if found.missing:
        print_message(
            f"the archive does not hold {len(found.missing):,} of the rounds ({found.missing[0]} to "
            f"{found.missing[-1]}): the replay begins with {begin}"
        )
    if rounds[0] > first and found.start is not None:
        print_message(f"rounds {first} to {rounds[0] - 1} were not replayed")
    typer.echo(
        f"peer {peer}: {len(rounds)} rounds ({rounds[0]} to {rounds[-1]}) from {begin}: equal weights after each of "
        f"them, {found.weights} after the last"
    )
    signed, total = found.proofs.get(Proof.SIGNED, 0), sum(found.proofs.values())
    if total:
        typer.echo(f"{signed} of {total} received contributions are as their authors signed them")
    if unknown := found.proofs.get(Proof.UNKNOWN, 0):
        print_message(
            f"{unknown} cannot be compared with what their authors signed: another version of zstandard compressed "
            "them, or their rows were changed"
        )
    if absent := found.proofs.get(Proof.ABSENT, 0):
        print_message(f"{absent} came without a signature")
