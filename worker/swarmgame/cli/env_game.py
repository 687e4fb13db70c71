"""`swarmgame env check GAME`: what a game rests on, and whether its data makes the same questions twice."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, cast

from swarmgame.cli.options import found_in, print_message
from swarmgame.cli.validate import check_game
from swarmgame.observability.text import counted

if TYPE_CHECKING:
    from swarmgame.game.components import DataManager
    from swarmgame.runtime.assembly import ResolvedGame
    from swarmgame_api.manifest import SwarmGame


def is_game(name: str) -> bool:
    """Return whether a name is that of a manifest's file."""
    return name.endswith((".yaml", ".yml")) or Path(name).is_file()


def pinned_and_repeatable(game: Path, overrides: Sequence[str]) -> list[dict[str, str]]:
    """Return a row for each source of a game, after its data was played twice.

    Raises:
        InvalidManifest, BadGame: the game cannot be used, or its data is not deterministic.
    """
    manifest, resolved = check_game(game, overrides)
    from swarmgame.runtime.repeatable import check_environment, check_repeatable

    with found_in(game):
        rows = _pinned(manifest, resolved)
    compared = check_repeatable(game, overrides, resolved)
    if episodes := check_environment(manifest, resolved):
        print_message(f"the environment gave the same in two plays of {counted(episodes, 'question')}")
    print_message(f"deterministic: two processes made the same {counted(compared, 'question')}, prompts included")
    return rows


def _pinned(manifest: SwarmGame, resolved: ResolvedGame) -> list[dict[str, str]]:
    from swarmgame.game.demonstrations import Demonstrations
    from swarmgame.runtime.assembly import context_of, local_modules
    from swarmgame.runtime.sources import code_of, sources_of

    game = manifest.spec.game
    with local_modules(resolved.folder):
        context = context_of(manifest, folder=resolved.folder)
        data = cast("type[DataManager]", resolved.data.component)(resolved.data.config, context)
        try:
            demonstrations = data if isinstance(data, Demonstrations) else None
            model, made_of = (
                ("", "no model")
                if manifest.spec.model is None
                else _model(replace(context, demonstrations=demonstrations))
            )
            sources = sources_of(manifest, resolved, data, model)
            read = data.content_digest()
        finally:
            data.close()
    files = ", ".join(sorted(path.name for path in code_of(manifest, resolved).files.values()))
    described = {
        "rounds": f"{counted(game.stages, 'stage')}, {game.exchange}, {counted(len(game.roles), 'role')}"
        + (f", environment {game.environment.use}, its options" if game.environment is not None else ""),
        "data": f"{game.data.use}, its options" + (f", {read[:80]}" if read else ""),
        "code": files or "no modules of the game's own",
        "rewards": f"{game.rewards.use}, its options",
        "model": made_of,
    }
    return [{"source": name, "fingerprint": value, "of": described[name]} for name, value in sources.as_json().items()]


def _model(context: object) -> tuple[str, str]:
    """Return the fingerprint of the model, empty where it is not on this machine, and what it is."""
    from swarmgame.errors import InvalidManifest
    from swarmgame.game.components import ComponentContext
    from swarmgame.models.fingerprint import commit_of, model_fingerprint
    from swarmgame.models.warmstart import source_of

    assert isinstance(context, ComponentContext)
    source = source_of(context)
    try:
        found = model_fingerprint(source, context.cache)
    except InvalidManifest:
        return "", f"{source.uri}, not on this machine yet"
    commit = commit_of(source)
    return found, f"{source.uri}, commit {commit}" if commit else source.uri
