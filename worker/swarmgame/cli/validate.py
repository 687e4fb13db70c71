"""`swarmgame validate GAME`: the dry run. Everything that could be wrong is looked at, nothing is started and nothing
is written.

Prints the manifest as it will be used: overrides applied, defaults filled in, those of the parts' own `with` blocks
too. YAML goes to standard output, the verdict to standard error, so that `swarmgame validate game.yaml > resolved.yaml`
keeps a file that validates again. Invariant: exit codes are not decided here; what is wrong leaves as an exception.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.syntax import Syntax

from swarmgame_api.errors import InvalidManifest
from swarmgame_api.load import load_manifest, manifest_data
from swarmgame_api.manifest import SwarmGame
from swarmgame_api.yaml_io import dump_document

if TYPE_CHECKING:
    from swarmgame.runtime.assembly import ResolvedGame


def validate(game: Path, overrides: Sequence[str] = ()) -> None:
    """Checks a game and prints its resolved configuration, highlighted on a terminal, and a verdict of one line.

    Raises:
        InvalidManifest: with every problem found, and the file's name.
    """
    manifest, blueprint = check_game(game, overrides)
    text = dump_document(resolved(manifest, blueprint))
    output = Console()
    if output.is_terminal:
        output.print(Syntax(text, "yaml", background_color="default", word_wrap=True))
    else:
        print(text, end="")
    Console(stderr=True, highlight=False, soft_wrap=True).print(
        f"[green]✓[/green] {game}: {verdict(manifest)}", emoji=False
    )


def check_game(game: Path, overrides: Sequence[str] = ()) -> tuple[SwarmGame, ResolvedGame]:
    """The manifest, and the parts that it names: found, importable, with valid configuration.

    Raises:
        InvalidManifest: naming the file, whichever of the two steps found it.
    """
    manifest = load_manifest(game, overrides)
    # Loads what the parts need, which takes seconds: only once the file itself is known to be good.
    from swarmgame.runtime.assembly import check

    try:
        return manifest, check(manifest, game.resolve().parent)
    except InvalidManifest as error:
        raise error.at(str(game)) from error


def resolved(manifest: SwarmGame, blueprint: ResolvedGame) -> dict[str, Any]:
    """The manifest as plain data with every default, those of the parts included."""
    data = manifest_data(manifest)
    for name in ("data", "rewards", "trainer"):
        config = getattr(blueprint, name).config
        data["spec"]["game"][name]["with"] = config.model_dump(mode="json", by_alias=True)
    return data


def verdict(manifest: SwarmGame) -> str:
    """What this game is, in one line."""
    game, peers = manifest.spec.game, manifest.spec.peers
    parts = [
        f"{manifest.metadata.name} is valid",
        f"{_count(game.max_rounds, 'round')} of {_count(game.stages, 'stage')}",
        _count(peers.replicas, "peer"),
        f"data {game.data.use}, rewards {game.rewards.use}, trainer {game.trainer.use}",
        f"model {manifest.spec.model.uri}" if manifest.spec.model else "a model of the trainer's own",
    ]
    return " · ".join(parts).replace("[", r"\[")


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"
