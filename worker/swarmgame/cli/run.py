"""`swarmgame run`: a complete swarm on this machine."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from swarmgame.cli.options import Game, Overrides, Report, Rounds, Runs, found_in, load_game, print_message

if TYPE_CHECKING:
    from swarmgame_api.manifest import SwarmGame


class CoordinationChoice(StrEnum):
    """The values of `--coordination`. The manifest's mode External needs more than a word."""

    dev = "dev"
    none = "none"


def run(
    game: Game,
    peers: Annotated[
        int | None, typer.Option("--peers", metavar="N", min=1, help="Number of peers, instead of the manifest's.")
    ] = None,
    rounds: Rounds = None,
    set_: Overrides = None,
    runs: Runs = Path("runs"),
    name: Annotated[str, typer.Option("--name", metavar="NAME", help="Name of the run. Default: the game's.")] = "",
    processes: Annotated[
        int | None,
        typer.Option(
            "--processes-per-peer", metavar="N", min=1, help="Ranks of each peer, connected by torch.distributed."
        ),
    ] = None,
    coordination: Annotated[
        CoordinationChoice | None,
        typer.Option(
            "--coordination",
            metavar="dev|none",
            help="dev: a local chain for this run (anvil, play money). Default: the manifest's.",
        ),
    ] = None,
    host: Annotated[
        str,
        typer.Option(
            "--host",
            metavar="HOST",
            help="Address to listen on for other peers; with 0.0.0.0, or :: for IPv6 too, other machines can join.",
        ),
    ] = "127.0.0.1",
    random_keys: Annotated[
        bool,
        typer.Option(
            "--random-keys",
            help="Make the peers' keys random instead of deriving them from the seed: on a machine with users that "
            "you do not trust. The run cannot be repeated.",
        ),
    ] = False,
    fresh: Annotated[bool, typer.Option("--fresh", help="Remove what this run has done, and begin again.")] = False,
    report: Report = True,
) -> None:
    """Play a game with several peers on this machine, and watch them learn.

    A terminal shows one live table; a pipe gets one JSON line for each round, and lines with "event": where one more
    peer can join, and each process that ended too early. Ctrl-C stops cleanly, a second one at once. The same command
    again goes on where it stopped.
    Metrics, checkpoints, plots and report.html are in runs/NAME/.

    Equal manifests give equal numbers on one machine: see docs/guide/repeat-a-run.md. A stage waits for every live
    peer, unless the manifest names a quorum or --host lets other machines join.

    [bold]Examples[/bold]

      swarmgame run examples/01-quickstart/game.yaml

      swarmgame run game.yaml --peers 2 --rounds 20 --set game.trainer.with.generations=4 --fresh

      swarmgame run game.yaml --coordination dev

      swarmgame run game.yaml --set game.seed=7 --name seed-7 | jq 'select(.round).reward'
    """
    shortcuts = (
        ("spec.peers.replicas", peers),
        ("spec.game.maxRounds", rounds),
        ("spec.peers.processesPerPeer", processes),
        ("spec.coordination.mode", coordination.value.capitalize() if coordination is not None else None),
    )
    overrides = (*(set_ or ()), *(f"{path}={value}" for path, value in shortcuts if value is not None))
    manifest = load_game(game, overrides)
    with found_in(game):
        from swarmgame.launch.local import RunOptions, run
        from swarmgame.runtime.assembly import check, prepare

        options = RunOptions(
            game=game,
            overrides=overrides,
            runs=runs,
            name=name,
            fresh=fresh,
            report=report,
            host=host,
            random_keys=random_keys,
        )

        def check_and_warn(manifest: SwarmGame, folder: Path) -> None:
            for warning in check(manifest, folder).warnings:
                print_message(f"warning: {warning}")

        raise typer.Exit(int(run(manifest, options, check=check_and_warn, prepare=prepare, notify=print_message)))
