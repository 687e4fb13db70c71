"""The `swarmgame` command, and the only place where an exception becomes an exit code.

An error that the user can correct is one readable message on standard error; an internal error keeps its traceback.
Importing this loads neither torch nor a game, so that `--help` answers at once.
"""

from __future__ import annotations

import os
import signal
import sys
import traceback
from collections.abc import Sequence
from types import FrameType
from typing import Annotated

import typer

from swarmgame.cli import components, env, pod
from swarmgame.cli.export import export
from swarmgame.cli.join import join
from swarmgame.cli.new import new
from swarmgame.cli.options import UsageError
from swarmgame.cli.peer import peer
from swarmgame.cli.peers import peers
from swarmgame.cli.replay import replay
from swarmgame.cli.report import report
from swarmgame.cli.rollouts import rollouts
from swarmgame.cli.run import run
from swarmgame.cli.validate import validate
from swarmgame.errors import ExitCode, InvalidManifest, SwarmGameError, exit_code_of, not_writable
from swarmgame_chain import cli as chain
from swarmgame_common.parent_death import follow_parent

INTERRUPTED = 130
"""What typer returns after a KeyboardInterrupt."""

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, rich_markup_mode="rich")
app.command()(run)
app.command()(join)
app.command()(validate)
app.command()(report)
app.command()(export)
app.command()(rollouts)
app.command()(replay)
app.command()(new)
app.command()(peer)
app.command()(peers)
app.command()(chain.gateway)
app.add_typer(env.app, name="env")
app.add_typer(components.app, name="components")
app.add_typer(pod.app, name="pod")
app.add_typer(chain.app, name="chain")


@app.callback()
def swarmgame(
    version: Annotated[
        bool,
        typer.Option("--version", help="Show the version and exit.", is_eager=True, callback=lambda v: _version(v)),
    ] = False,
) -> None:
    """Swarms of independent peers that post-train their own models by reinforcement learning, and share their
    rollouts.

    [bold]Begin here[/bold]

      swarmgame run examples/01-quickstart/game.yaml   [dim]a swarm on this machine[/dim]

      swarmgame validate game.yaml                     [dim]check a game[/dim]

      swarmgame export quickstart my-model             [dim]its model, for transformers[/dim]

      swarmgame new my-game                            [dim]a game of your own[/dim]

      swarmgame join game.yaml --initial-peer ADDRESS  [dim]one more peer for a running swarm[/dim]
    """


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command and exit with its code."""
    follow_parent()
    # A thread that waits for another one sleeps. By default it computes in a loop meanwhile, which takes the core from
    # the thread that it waits for where other programs run. Read when torch is loaded, and by all processes that this
    # one starts (docs/decisions/0012-daemon-threads.md).
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    signal.signal(signal.SIGTERM, _interrupt)
    sys.exit(int(run_command(arguments)))


def run_command(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code. Internal errors are raised."""
    try:
        result = app(args=None if arguments is None else list(arguments), prog_name="swarmgame", standalone_mode=False)
    except (SwarmGameError, InvalidManifest) as error:
        print(error, file=sys.stderr)
        return exit_code_of(error)
    except UsageError as error:
        error.show()
        return ExitCode.BAD_USAGE
    except (KeyboardInterrupt, typer.Abort):
        result = INTERRUPTED
    except Exception as error:  # noqa: BLE001 — raised again unless it is known
        return _unforeseen(error)
    if result == INTERRUPTED:
        print("stopped", file=sys.stderr)
        return ExitCode.STOPPED
    return result if isinstance(result, int) else ExitCode.DONE


def _unforeseen(error: Exception) -> int:
    """Show an error that no rule foresees and return its exit code, or raise it.

    Of a peer's failure the traceback begins in the peer. A full or read-only disk is a sentence, unless the game's own
    code met it.
    """
    from swarmgame.runtime.failure import PeerFailure, failure_of

    if isinstance(error, PeerFailure):
        traceback.print_exception(error.__cause__ or error)
        print(error, file=sys.stderr)
        return ExitCode.INTERNAL
    known = not_writable(error)
    if known is None or failure_of(error).of_game:
        raise error
    print(known, file=sys.stderr)
    return exit_code_of(known)


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _version(shown: bool) -> None:
    if shown:
        from swarmgame import __version__

        typer.echo(__version__)
        raise typer.Exit


if __name__ == "__main__":
    main()
