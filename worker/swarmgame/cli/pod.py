"""`swarmgame pod peer|bootnode|initialize`: the commands of the worker's image in a cluster.

They take no options: what differs by pod comes from the environment (`swarmgame.launch.pod_settings`), the rest from
the manifest. An error that ends a command is also written to the termination log, from which `kubectl get pod` and the
operator show it. Importing this loads neither torch nor hivemind.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import typer

from swarmgame.cli.options import UsageError, found_in, load_game, print_message
from swarmgame.errors import ExitCode, exit_code_of
from swarmgame_common.termination import write_termination_message

app = typer.Typer(name="pod", help="The commands of a pod; configured by the environment.", no_args_is_help=True)


@app.command()
def peer() -> None:
    """Run the peer of this pod, as several ranks where there are several GPUs.

    A peer whose game is complete ends with 0 at once.

    [bold]Examples[/bold]

      SWARMGAME_GAME=game.yaml SWARMGAME_DIRECTORY=peers/0 SWARMGAME_IDENTITY=peers/0/peer.key swarmgame pod peer
    """
    with errors_in_termination_log():
        from swarmgame.launch.pod import run_pod_peer
        from swarmgame.launch.pod_settings import WorkerPodSettings, pod_settings

        settings = pod_settings(WorkerPodSettings)
        with found_in(settings.game):
            manifest = load_game(settings.game)
            ended = run_pod_peer(manifest, settings.game, settings.peer_options(manifest), settings.devices)
        if ended.message:
            print_message(ended.message)
            if ended.code is not ExitCode.DONE:
                write_termination_message(ended.message)
        raise typer.Exit(int(ended.code))


@app.command()
def bootnode() -> None:
    """Run a bootnode: an address that newcomers try first. It plays no round and keeps nothing on disk.

    [bold]Examples[/bold]

      SWARMGAME_GAME=game.yaml SWARMGAME_IDENTITY=bootnode.key swarmgame pod bootnode
    """
    with errors_in_termination_log():
        import asyncio
        import signal

        from swarmgame.launch.bootnode import BootnodeOptions, serve
        from swarmgame.launch.pod_settings import BootnodeSettings, pod_settings
        from swarmgame.runtime.options import run_id
        from swarmgame_common import logs

        settings = pod_settings(BootnodeSettings)
        with found_in(settings.game):
            manifest = load_game(settings.game)
        logs.configure()
        options = BootnodeOptions(run_id(manifest), settings.network(manifest), settings.http_host, settings.http_port)

        async def work() -> None:
            stop = asyncio.Event()
            for number in (signal.SIGTERM, signal.SIGINT):
                asyncio.get_running_loop().add_signal_handler(number, stop.set)
            await serve(options, stop, notify=lambda line: print(line, flush=True))

        asyncio.run(work())
        raise typer.Exit(int(ExitCode.STOPPED))


@app.command()
def initialize() -> None:
    """Fill the model cache once, so that no peer downloads or creates a model by itself.

    Ends with 78 where the game or its model cannot be used, with 75 where the hub did not answer.

    [bold]Examples[/bold]

      SWARMGAME_GAME=game.yaml SWARMGAME_CACHE=/tmp/cache swarmgame pod initialize
    """
    with errors_in_termination_log():
        from swarmgame.launch.pod_settings import WorkerPodSettings, pod_settings
        from swarmgame_common import logs

        game: Path = pod_settings(WorkerPodSettings).game
        with found_in(game):
            manifest = load_game(game)
            from swarmgame.runtime.assembly import prepare, resolve_game

            logs.configure()
            resolve_game(manifest, game.parent)
            prepare(manifest, game.parent)
        print_message(f"{manifest.spec.model.uri if manifest.spec.model else 'a game without a model'}: ready")


@contextmanager
def errors_in_termination_log() -> Iterator[None]:
    """Write the error that ends a command to the termination log."""
    try:
        yield
    except (KeyboardInterrupt, typer.Exit, typer.Abort):
        raise
    except UsageError as error:
        write_termination_message(error.format_message())
        raise
    except Exception as error:
        from swarmgame.runtime.failure import PeerFailure, failure_of

        known = isinstance(error, PeerFailure) or exit_code_of(error) is not ExitCode.INTERNAL
        write_termination_message(str(error) if known else str(failure_of(error)))
        raise
