"""`swarmgame validate GAME`: the dry run. Checks everything, starts nothing and writes nothing.

Prints the manifest as it will be used, with overrides and all defaults, those of the components' `with` blocks too.
The YAML goes to standard output and the summary to standard error, so `swarmgame validate game.yaml > resolved.yaml`
makes a file that validates again.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from swarmgame.cli.options import Game, Overrides, found_in, load_game, print_message
from swarmgame.observability.text import counted

if TYPE_CHECKING:
    from swarmgame.runtime.assembly import ResolvedGame
    from swarmgame_api.manifest import SwarmGame


def validate(game: Game, set_: Overrides = None) -> None:
    """Show every mistake in a game, or print it with all defaults filled in. Starts and writes nothing.

    [bold]Examples[/bold]

      swarmgame validate game.yaml

      swarmgame validate game.yaml --set game.trainer.with.generations=1
    """
    from rich.console import Console
    from rich.syntax import Syntax

    from swarmgame.runtime.assembly import resolved_data
    from swarmgame_api.yaml_io import dump_document

    manifest, resolved = check_game(game, set_ or ())
    for warning in resolved.warnings:
        print_message(f"warning: {warning}")
    text = dump_document(resolved_data(manifest, resolved))
    output = Console()
    if output.is_terminal:
        output.print(Syntax(text, "yaml", background_color="default", word_wrap=True))
    else:
        print(text, end="")
    Console(stderr=True, highlight=False, soft_wrap=True).print(
        f"[green]✓[/green] {game}: {summary(manifest)}", emoji=False
    )


def check_game(game: Path, overrides: Sequence[str] = ()) -> tuple[SwarmGame, ResolvedGame]:
    """Return the manifest and its components: found, importable, with valid configuration.

    Raises:
        InvalidManifest: with the file's name.
    """
    manifest = load_game(game, overrides)
    # Imports the components, which takes seconds: only when the file itself is valid.
    from swarmgame.runtime.assembly import check

    with found_in(game):
        return manifest, check(manifest, game.resolve().parent, load_model=True)


def summary(manifest: SwarmGame) -> str:
    """Return the game in one line."""
    game, peers = manifest.spec.game, manifest.spec.peers
    facts = [
        f"{manifest.metadata.name} is valid",
        f"{counted(game.max_rounds, 'round')} of {counted(game.stages, 'stage')}",
        counted(peers.replicas, "peer"),
        f"data {game.data.use}, rewards {game.rewards.use}, trainer {game.trainer.use}"
        + (f", environment {game.environment.use}" if game.environment is not None else ""),
        f"model {manifest.spec.model.uri}" if manifest.spec.model else "a model of the trainer's own",
    ]
    return " · ".join(facts).replace("[", r"\[")
