"""`swarmgame run`: a whole swarm on this machine."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from swarmgame.cli.options import Game, Overrides, Rounds, Runs, found_in, say


class CoordinationChoice(StrEnum):
    """What `--coordination` takes; the manifest's mode External needs more than a word."""

    dev = "dev"
    none = "none"


def run(
    game: Game,
    peers: Annotated[
        int | None, typer.Option("--peers", metavar="N", min=1, help="How many peers; else as the manifest says.")
    ] = None,
    rounds: Rounds = None,
    set_: Overrides = None,
    runs: Runs = Path("runs"),
    name: Annotated[str, typer.Option("--name", metavar="NAME", help="Name of the run; else the game's.")] = "",
    processes: Annotated[
        int | None,
        typer.Option(
            "--processes-per-peer", metavar="N", min=1, help="Ranks of each peer, joined by torch.distributed."
        ),
    ] = None,
    coordination: Annotated[
        CoordinationChoice | None,
        typer.Option(
            "--coordination",
            metavar="dev|none",
            help="dev: a chain of the run's own (anvil, play money). Else as the manifest says.",
        ),
    ] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Forget what this run has done, and begin again.")] = False,
    report: Annotated[
        bool, typer.Option("--report/--no-report", help="Write report.html and plots at the end.")
    ] = True,
) -> None:
    """Play a game with several peers on this machine, and watch them learn.

    On a terminal there is one live table; on a pipe, one JSON line a round. Ctrl-C leaves cleanly, a second one at
    once. Running the same command again goes on where it stopped. Metrics, checkpoints, plots and report.html are under
    runs/NAME/.

    [bold]Examples[/bold]

      swarmgame run examples/01-quickstart/game.yaml

      swarmgame run game.yaml --peers 2 --rounds 20 --set game.trainer.with.generations=4 --fresh

      swarmgame run game.yaml --coordination dev

      swarmgame run game.yaml --set game.seed=7 --name seed-7 | jq .reward
    """
    from swarmgame.launch.local import RunOptions, run
    from swarmgame_api.load import load_manifest

    shortcuts = (
        ("spec.peers.replicas", peers),
        ("spec.game.maxRounds", rounds),
        ("spec.peers.processesPerPeer", processes),
        ("spec.coordination.mode", coordination.value.capitalize() if coordination is not None else None),
    )
    overrides = (*(set_ or ()), *(f"{path}={value}" for path, value in shortcuts if value is not None))
    options = RunOptions(game=game, overrides=overrides, runs=runs, name=name, fresh=fresh, report=report)
    load_manifest(game, overrides)  # most mistakes are found before torch is loaded
    with found_in(game):
        from swarmgame.runtime.assembly import check, prepare

        raise typer.Exit(int(run(options, check=check, prepare=prepare, say=say)))
