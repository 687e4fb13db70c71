"""`swarmgame pod peer|bootnode|initialize`: what the worker's image runs in a cluster.

Everything comes from the environment that the operator sets; the options are there to try it at home. Whatever ends a
command is also one line in the termination log, which `kubectl get pod` and the operator show. Invariant: importing
this loads neither torch nor hivemind.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from swarmgame.cli.options import Announce, InitialPeers, checked_addresses, found_in
from swarmgame.errors import ExitCode, exit_code_of
from swarmgame_api.load import load_manifest

app = typer.Typer(name="pod", help="What a pod runs; configured by the environment.", no_args_is_help=True)

PodGame = Annotated[Path, typer.Option("--game", metavar="FILE", envvar="SWARMGAME_GAME", help="The manifest.")]
Directory = Annotated[
    Path,
    typer.Option(
        "--directory",
        metavar="DIR",
        envvar="SWARMGAME_DIRECTORY",
        help="The peer's own folder, on the checkpoints' volume.",
    ),
]
MOUNTED = Path("/etc/swarmgame/game/game.yaml")


@app.command()
def peer(
    game: PodGame = MOUNTED,
    directory: Directory = Path("/checkpoints/peer"),
    processes: Annotated[
        str,
        typer.Option(
            "--processes", metavar="auto|N", envvar="SWARMGAME_PROCESSES", help="Ranks; auto: one for each CUDA device."
        ),
    ] = "auto",
) -> None:
    """Play one peer's part, as `swarmgame peer` does with the same environment; as several ranks where there are
    several GPUs.

    A peer whose game is complete ends with 0 at once.
    """
    with last_words():
        with found_in(game):
            spec = load_manifest(game).spec
        from swarmgame.launch.pod import process_count, rounds_finished, run_ranks, write_termination_message

        if rounds_finished(directory) >= spec.game.max_rounds:
            typer.echo(f"all {spec.game.max_rounds} rounds are finished", err=True)
            raise typer.Exit(int(ExitCode.DONE))
        os.environ["SWARMGAME_DIRECTORY"] = str(directory)
        ranks = process_count(processes)
        if ranks == 1:
            raise typer.Exit(_play(game))
        ending = run_ranks(game, directory, ranks, spec.termination_grace_period_seconds)
        if ending.message:
            print(ending.message, file=sys.stderr)
            write_termination_message(ending.message)
        raise typer.Exit(int(ending.code))


@app.command()
def bootnode(
    game: PodGame = MOUNTED,
    identity: Annotated[
        Path, typer.Option("--identity", metavar="FILE", envvar="SWARMGAME_IDENTITY", help="Its key; it is only read.")
    ] = Path("/etc/swarmgame/identity/bootnode.key"),
    port: Annotated[
        int,
        typer.Option(
            "--port", metavar="PORT", min=0, max=65535, envvar="SWARMGAME_PORT", help="For peers; 0 takes any."
        ),
    ] = 31000,
    http_port: Annotated[
        int,
        typer.Option(
            "--http-port",
            metavar="PORT",
            min=0,
            max=65535,
            envvar="SWARMGAME_HTTP_PORT",
            help="For /healthz, /readyz, /metrics.",
        ),
    ] = 8080,
    http_host: Annotated[
        str,
        typer.Option(
            "--http-host", metavar="HOST", envvar="SWARMGAME_HTTP_HOST", help="0.0.0.0 to be seen from elsewhere."
        ),
    ] = "127.0.0.1",
    initial_peers: InitialPeers = None,
    announce: Announce = None,
) -> None:
    """Be an address that newcomers try first. Plays no round, keeps nothing, needs a few tens of megabytes."""
    with last_words():
        with found_in(game):
            manifest = load_manifest(game)
        import asyncio
        import signal

        from swarmgame.launch import bootnode
        from swarmgame.observability import logs

        logs.configure()
        options = bootnode.BootnodeOptions(
            run=f"{manifest.metadata.name}-{manifest.spec.game.seed}",
            identity=identity,
            port=port,
            http_port=http_port,
            http_host=http_host,
            announce=tuple(announce or ()),
            initial_peers=checked_addresses(
                [*manifest.spec.communication.initial_peers, *(initial_peers or ())], "--initial-peer"
            ),
        )

        async def work() -> None:
            stop = asyncio.Event()
            for number in (signal.SIGTERM, signal.SIGINT):
                asyncio.get_running_loop().add_signal_handler(number, stop.set)
            await bootnode.serve(options, stop, said=lambda line: print(line, flush=True))

        asyncio.run(work())
        raise typer.Exit(int(ExitCode.STOPPED))


@app.command()
def initialize(game: PodGame = MOUNTED) -> None:
    """Fill the model cache once, so that no peer downloads or makes a model by itself.

    Ends with 78 where the game or its model cannot be used, with 75 where the hub did not answer.
    """
    with last_words(), found_in(game):
        manifest = load_manifest(game)
        from swarmgame.observability import logs
        from swarmgame.runtime.assembly import prepare, resolve_game

        logs.configure()
        resolve_game(manifest, game.parent)
        prepare(manifest, game.parent)
        typer.echo(f"{manifest.spec.model.uri if manifest.spec.model else 'a game without a model'}: ready", err=True)


@contextmanager
def last_words() -> Iterator[None]:
    """Leaves the error that ends a command in the termination log."""
    from swarmgame.cli.main import UsageError
    from swarmgame.launch.pod import write_termination_message

    try:
        yield
    except (KeyboardInterrupt, typer.Exit, typer.Abort):
        raise
    except Exception as error:
        if isinstance(error, UsageError):
            write_termination_message(error.format_message())
        else:
            write_termination_message(
                f"{type(error).__name__}: {error}" if exit_code_of(error) is ExitCode.INTERNAL else str(error)
            )
        raise


def _play(game: Path) -> int:
    """`swarmgame peer` in this process; its options come from the environment."""
    from swarmgame.cli.main import app as whole
    from swarmgame.launch.pod import write_termination_message

    result = whole(args=["peer", str(game)], prog_name="swarmgame", standalone_mode=False)
    if result == ExitCode.TEMPORARY:
        write_termination_message("nobody else was left in the swarm, and the game's progression.whenAlone is Stop")
    return result if isinstance(result, int) else int(ExitCode.DONE)
