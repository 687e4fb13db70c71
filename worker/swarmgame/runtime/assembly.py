"""Assembly: from a manifest to the parts of a game.

`check` does everything that can be wrong before anything starts (imports the parts, validates each `with` block, tries
the data, looks at the model's address) and writes nothing; `assemble` makes the parts for a peer; `prepare` fills the
model cache once. Invariant: whatever a manifest's author can mend surfaces here as an `InvalidManifest` with a path.
"""

from __future__ import annotations

import importlib
import os
import sys
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from importlib.metadata import entry_points
from pathlib import Path
from threading import Thread
from typing import cast

from pydantic import BaseModel, ValidationError

from swarmgame.game.components import Component, ComponentContext, DataManager, Demonstrations, RewardManager, Trainer
from swarmgame.game.external_sampling import ExternalSamplingPolicy
from swarmgame.game.manager import Progression
from swarmgame.game.protocol import Exchange
from swarmgame.game.roles import Role, RoleManager
from swarmgame.models import uri as model_uri
from swarmgame_api.errors import InvalidManifest
from swarmgame_api.game import GameSpec, Use
from swarmgame_api.manifest import SwarmGame
from swarmgame_api.sampler import SERVER_URL, SERVER_WEIGHTS
from swarmgame_api.validation_messages import did_you_mean, explain

GROUPS: Mapping[str, tuple[str, type[Component]]] = {
    "data": ("swarmgame.data", DataManager),
    "rewards": ("swarmgame.rewards", RewardManager),
    "trainer": ("swarmgame.trainers", Trainer),
}
"""Part of the manifest → entry-point group, and what a class there must be."""

TOKEN_FILE = "SWARMGAME_MODEL_TOKEN_FILE"
"""Environment: the file that holds the hub's token (in a pod, the Secret that `spec.model.secretRef` names). Never the
token itself.
"""
CACHE = "SWARMGAME_CACHE"
"""Environment: the folder that outlives runs, for models and datasets; in a pod a volume."""


@dataclass(frozen=True)
class ResolvedComponent:
    """A part that was found and whose configuration is valid, not yet made."""

    part: type[Component]
    config: BaseModel


@dataclass(frozen=True)
class ResolvedGame:
    """The three parts of a game, found and valid."""

    data: ResolvedComponent
    rewards: ResolvedComponent
    trainer: ResolvedComponent


@dataclass(frozen=True)
class Components:
    """The three parts of a game, made."""

    data: DataManager
    rewards: RewardManager
    trainer: Trainer

    def close(self) -> None:
        for part in (self.data, self.rewards, self.trainer):
            part.close()


@contextmanager
def code_of(folder: Path) -> Iterator[None]:
    """Makes the modules beside a manifest importable, before those that are installed."""
    entry = str(folder.resolve())
    sys.path.insert(0, entry)
    try:
        yield
    finally:
        sys.path.remove(entry)


def check(manifest: SwarmGame, folder: Path) -> ResolvedGame:
    """Everything that can be wrong before anything starts: parts, their configuration, the data, the model's address.
    Writes nothing.

    Args:
        folder: the manifest's, where modules of the author's own are looked for.

    Raises:
        InvalidManifest: with the path of what is wrong.
    """
    with code_of(folder):
        # The cheapest first: the user waits for the answer. The trainer is the dearest to import, so it begins beside
        # the rest.
        model = manifest.spec.model
        if model is not None:
            model_uri.check(model.uri, model.revision, context_of(manifest).model_token)
        game = manifest.spec.game
        data = _choose(game, "data")
        Thread(target=_find_quietly, args=(game.trainer.use, "trainer"), name="import trainer", daemon=True).start()
        data.part(data.config, context_of(manifest)).close()
        return ResolvedGame(data=data, rewards=_choose(game, "rewards"), trainer=_choose(game, "trainer"))


def resolve_game(manifest: SwarmGame, folder: Path) -> ResolvedGame:
    """The parts, found and valid; what only making the data would show is left to `assemble`.

    Raises:
        InvalidManifest: with the path of what is wrong.
    """
    game = manifest.spec.game
    with code_of(folder):
        return ResolvedGame(
            data=_choose(game, "data"), rewards=_choose(game, "rewards"), trainer=_choose(game, "trainer")
        )


def context_of(manifest: SwarmGame, **changes: object) -> ComponentContext:
    """The setting of a manifest's parts; `changes` are fields of `ComponentContext`."""
    model = manifest.spec.model
    token, cache = os.environ.get(TOKEN_FILE), os.environ.get(CACHE)
    plain = ComponentContext(
        seed=manifest.spec.game.seed,
        stages=manifest.spec.game.stages,
        model_uri=model.uri if model else "",
        model_revision=model.revision if model else "",
        model_token=Path(token) if token else None,
        sampler_url=os.environ.get(SERVER_URL, ""),
        sampler_weights=Path(os.environ[SERVER_WEIGHTS]) if os.environ.get(SERVER_WEIGHTS) else None,
    )
    if cache:
        plain = replace(plain, cache=Path(cache))
    return replace(plain, **changes)  # type: ignore[arg-type]


def assemble(blueprint: ResolvedGame, context: ComponentContext, rewards: RewardManager | None = None) -> Components:
    """Makes the parts. The trainer is told where worked examples come from, when the data has any.

    Args:
        rewards: used in place of the blueprint's own, where another rank does the scoring.
    """
    data = cast(DataManager, blueprint.data.part(blueprint.data.config, context))
    scoring = (
        rewards
        if rewards is not None
        else cast(RewardManager, blueprint.rewards.part(blueprint.rewards.config, context))
    )
    informed = replace(context, demonstrations=data if isinstance(data, Demonstrations) else None)
    return Components(data, scoring, cast(Trainer, blueprint.trainer.part(blueprint.trainer.config, informed)))


def prepare(manifest: SwarmGame, folder: Path) -> None:
    """Fills the model cache, so that no peer has to: the warm start of a builtin model, or the download of one from the
    hub.

    Raises:
        InvalidManifest: there is no such model, or the data cannot be made.
        Temporary: the hub did not answer.
    """
    if manifest.spec.model is None:
        return
    from swarmgame.models.loading import fetch
    from swarmgame.models.warmstart import ensure_model

    with code_of(folder):
        chosen = _choose(manifest.spec.game, "data")
        data = chosen.part(chosen.config, context_of(manifest))
        try:
            fetch(ensure_model(context_of(manifest, demonstrations=data if isinstance(data, Demonstrations) else None)))
        finally:
            data.close()


def progression_of(manifest: SwarmGame) -> Progression:
    """The numbers that the loop needs."""
    game = manifest.spec.game
    sharing = game.sharing
    exchange = sharing.exchange if sharing.exchange != "Auto" else ("Gather" if game.stages > 1 else "Pull")
    return Progression(
        max_rounds=game.max_rounds,
        stages=game.stages,
        seed=game.seed,
        exchange=Exchange(exchange),
        quorum=game.progression.quorum_fraction,
        stage_deadline_seconds=game.progression.stage_deadline_seconds,
        sharing=ExternalSamplingPolicy(
            sharing.external_groups, sharing.strategy, sharing.max_per_peer, sharing.max_staleness_rounds
        ),
        single_peer=manifest.spec.peers.replicas == 1,
        stop_when_isolated=game.progression.when_alone == "Stop",
        evaluate_every=game.evaluation.every_rounds if game.evaluation else 0,
        evaluation_questions=game.evaluation.questions if game.evaluation else 0,
    )


def roles_of(manifest: SwarmGame) -> RoleManager:
    return RoleManager([Role(role.name, role.count, role.share_fraction) for role in manifest.spec.game.roles])


# ── finding one part


def _choose(game: GameSpec, kind: str) -> ResolvedComponent:
    use: Use = getattr(game, kind)
    part = _find(use.use, kind)
    try:
        config = part.Config.model_validate(dict(use.with_), by_alias=True, by_name=False)
    except ValidationError as error:
        raise InvalidManifest(
            problems=explain(part.Config, error.errors(include_url=False), f"spec.game.{kind}.with")
        ) from error
    return ResolvedComponent(part, config)


def _find(name: str, kind: str) -> type[Component]:
    group, base = GROUPS[kind]
    path = f"spec.game.{kind}.use"
    if ":" in name:
        found = _import(name, path)
    else:
        registered = {entry.name: entry for entry in entry_points(group=group)}
        if name not in registered:
            expected = (
                f"one of {', '.join(sorted(registered))}, or package.module:Class{did_you_mean(name, registered)}"
            )
            raise InvalidManifest(path, name, expected)
        found = registered[name].load()
    if not (isinstance(found, type) and issubclass(found, base)):
        raise InvalidManifest(path, name, f"a subclass of swarmgame.{base.__name__}")
    return found


def _find_quietly(name: str, kind: str) -> None:
    """Imports a part ahead of time; whoever needs it will meet the same error again, and say it."""
    with suppress(InvalidManifest):
        _find(name, kind)


def _import(name: str, path: str) -> object:
    module_name, _, attribute = name.partition(":")
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        expected = "a module that can be imported: put it beside the manifest, or on PYTHONPATH"
        raise InvalidManifest(path, name, f"{expected} ({error})") from error
    except Exception as error:
        # Whatever an author's module raises while it is imported is the author's to mend, and they need to know where.
        where = traceback.extract_tb(error.__traceback__)[-1]
        at = (
            f"{error.filename}:{error.lineno}" if isinstance(error, SyntaxError) else f"{where.filename}:{where.lineno}"
        )
        raise InvalidManifest(
            path, name, f"a module that can be imported; {type(error).__name__} at {at}: {error}"
        ) from error
    if not hasattr(module, attribute):
        raise InvalidManifest(
            path, name, f"a class that {module_name} has; it has {', '.join(_classes(module)) or 'none'}"
        )
    return getattr(module, attribute)


def _classes(module: object) -> list[str]:
    return sorted(
        name for name, value in vars(module).items() if isinstance(value, type) and issubclass(value, Component)
    )
