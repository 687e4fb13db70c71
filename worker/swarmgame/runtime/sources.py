"""The sources of a peer's game: their fingerprints, and what each is made of.

`run_peer` announces them to other peers, keeps them in the checkpoint and shows them in the status; `swarmgame env
check` prints them. A resume over another base model is refused; other data, code or rewards are named in the log, since
an author may change them on purpose.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from swarmgame.environments.play import digest_of
from swarmgame.errors import BadData
from swarmgame.game.code import GameCode, find_code
from swarmgame.game.components import DataManager
from swarmgame.game.explained import explained
from swarmgame.game.sources import Sources, differences, fingerprint, forbidden
from swarmgame.models.fingerprint import other_base
from swarmgame.runtime.assembly import ResolvedComponent, ResolvedGame
from swarmgame.runtime.checkpoint import Checkpoint
from swarmgame_api.game import ComponentSpec
from swarmgame_api.manifest import SwarmGame

logger = logging.getLogger(__name__)


def sources_of(manifest: SwarmGame, resolved: ResolvedGame, data: DataManager, model: str = "") -> Sources:
    """Return the fingerprints of a game.

    Args:
        data: created, so that its rows have been read.
        model: fingerprint of the base model; empty where there is none.

    Raises:
        BadGame: a `content_digest` failed; with the author's lines.
    """
    game = manifest.spec.game
    with explained(resolved.data.component, "content_digest"):
        digest = data.content_digest()
    roles: list[Any] = [role.model_dump(mode="json") for role in game.roles]
    if game.role_manager is not None:
        roles.append(game.role_manager.model_dump(mode="json"))
    return Sources(
        rounds=fingerprint(game.stages, str(game.exchange), roles, *_environment(resolved, game.seed)),
        data=fingerprint(game.data.use, _options(resolved.data), digest),
        code=code_of(manifest, resolved).fingerprint,
        rewards=fingerprint(game.rewards.use, _options(resolved.rewards)),
        model=model,
    )


def code_of(manifest: SwarmGame, resolved: ResolvedGame) -> GameCode:
    """Return the author's modules that data, rewards and environment use. A trainer's may differ, as its policy may."""
    game = manifest.spec.game
    parts = [game.data, game.rewards, *(each for each in (game.environment, game.role_manager) if each is not None)]
    return find_code(map(_section, parts), resolved.folder)


def check_resume(saved: Checkpoint, ours: Sources, uri: str) -> None:
    """Compare the sources of a checkpoint with the present ones. A checkpoint of an earlier release has none.

    Args:
        uri: of the model, for messages.

    Raises:
        BadData: the run began with another base model; with both fingerprints, and what to do.
    """
    found = differences(ours, Sources.of_json(saved.state.get("sources")))
    for each in found:
        if each.name == "model":
            trainer = saved.state["trainer"]
            text = other_base((trainer.get("model", uri), each.theirs), (uri, each.ours), trainer.get("commit", ""))
            raise BadData(f"{saved.path}: {text}, or begin again with --fresh or another name")
    if changed := forbidden(found):
        text = "; ".join(f"{each.name}: {each.theirs} then, {each.ours} now" for each in changed)
        logger.warning("the game has changed since %s (%s): the run goes on with what it is now", saved.path.name, text)


def _options(resolved: ResolvedComponent) -> Mapping[str, Any]:
    return resolved.component.shared_options(resolved.config)


def _environment(resolved: ResolvedGame, seed: int) -> list[Any]:
    """Return what peers must have in common of an environment; nothing where there is none."""
    found = resolved.environment
    if found is None:
        return []
    spec = found.spec
    digest = digest_of(spec.use, spec.with_, resolved.folder, seed)
    return [spec.use, _options(found), spec.max_turns, spec.max_observation_tokens, digest]


def _section(spec: ComponentSpec) -> dict[str, Any]:
    return {"use": spec.use, "with": spec.with_}
