"""Assembly: from a manifest to the components of a game.

`check` finds every mistake before anything starts: it imports the components, validates each `with` block, tries data
and rewards with one question, and checks the model's address; it writes nothing. `assemble` creates the components for
a peer, `prepare` fills the model cache once. Invariant: each mistake that the manifest's author can correct is an
`InvalidManifest` with a path, or a `BadGame` with the author's lines.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Thread
from typing import Annotated, Any, cast

from pydantic import BaseModel

from swarmgame.environments.play import GROUP
from swarmgame.environments.sandboxed import episodes_of
from swarmgame.errors import BadUsage
from swarmgame.game.components import Component, ComponentContext, DataManager, RewardManager, Trainer
from swarmgame.game.demonstrations import Demonstrations
from swarmgame.game.environment import Environment, Episodes
from swarmgame.game.environment_data import EnvironmentData
from swarmgame.game.explained import explained
from swarmgame.game.external_sampling import ExternalSamplingPolicy
from swarmgame.game.lookup import find_component, validate_config
from swarmgame.game.manager import Progression
from swarmgame.game.protocol import Exchange
from swarmgame.game.roles import Role, RoleManager
from swarmgame.game.state import Sampling
from swarmgame.models.check import check_model
from swarmgame.observability.tracker import Tracker
from swarmgame.runtime.environment_trial import tried_environment
from swarmgame.runtime.ranked_episodes import shared_episodes
from swarmgame.runtime.trial import try_game
from swarmgame_api.errors import InvalidManifest
from swarmgame_api.export import ExportSpec
from swarmgame_api.game import ComponentSpec, EnvironmentSpec, GameSpec
from swarmgame_api.load import manifest_data
from swarmgame_api.manifest import SwarmGame
from swarmgame_api.sampler import SERVER_URL, SERVER_WEIGHTS
from swarmgame_common.settings import EnvironmentSettings, InvalidSettings, Variable, read_settings

GROUPS: Mapping[str, tuple[str, type[Component]]] = {
    "data": ("swarmgame.data", DataManager),
    "rewards": ("swarmgame.rewards", RewardManager),
    "trainer": ("swarmgame.trainers", Trainer),
    "environment": (GROUP, Environment),
    "role manager": ("swarmgame.roles", RoleManager),
    "tracker": ("swarmgame.trackers", Tracker),
}
"""Component of the manifest → entry-point group, and the base class."""


class ComponentSettings(EnvironmentSettings):
    """What components take from the environment."""

    cache: Annotated[Path | None, Variable("SWARMGAME_CACHE")] = None
    """Folder that outlives runs, for models and datasets; in a pod a volume."""
    model_token_file: Annotated[Path | None, Variable("SWARMGAME_MODEL_TOKEN_FILE")] = None
    """File with the model hub's token (in a pod, the Secret that `spec.model.secretRef` names). Never the token."""
    sampler_url: Annotated[str, Variable(SERVER_URL)] = ""
    """Address of the generation server beside the peer."""
    sampler_weights: Annotated[Path | None, Variable(SERVER_WEIGHTS)] = None
    """Folder through which it gets its weights."""


@dataclass(frozen=True)
class ResolvedComponent:
    """A component that was found and whose configuration is valid, not yet created."""

    component: type[Component]
    config: BaseModel


@dataclass(frozen=True)
class ResolvedEnvironment(ResolvedComponent):
    """An environment, with its section of the manifest."""

    spec: EnvironmentSpec


@dataclass(frozen=True)
class ResolvedGame:
    """The three components of a game and its trackers, found and valid.

    Args:
        folder: of the manifest, absolute.
        warnings: what a trial of the data showed that the author may not want, as sentences.
    """

    data: ResolvedComponent
    rewards: ResolvedComponent
    trainer: ResolvedComponent
    folder: Path
    warnings: tuple[str, ...] = ()
    trackers: tuple[ResolvedComponent, ...] = ()
    environment: ResolvedEnvironment | None = None


@dataclass(frozen=True)
class Components:
    """The components of a game, created."""

    data: DataManager
    rewards: RewardManager
    trainer: Trainer
    episodes: Episodes | None = None

    def close(self) -> None:
        for component in (self.data, self.rewards, self.trainer):
            component.close()
        if self.episodes is not None:
            self.episodes.close()


@contextmanager
def local_modules(folder: Path) -> Iterator[None]:
    """Make the modules beside a manifest importable, before those that are installed."""
    entry = str(folder.resolve())
    sys.path.insert(0, entry)
    try:
        yield
    finally:
        sys.path.remove(entry)


def check(manifest: SwarmGame, folder: Path, *, load_model: bool = False) -> ResolvedGame:
    """Find every mistake before anything starts: components, their configuration, the data, the model's address and
    files. Writes nothing.

    Args:
        folder: of the manifest; the author's own modules are imported from there.
        load_model: also load the model, if it is here and small, and try it.

    Raises:
        InvalidManifest: with the path of what is wrong.
        BadGame: the author's code failed; with the author's lines.
    """
    with local_modules(folder):
        # The cheapest first, since the user waits. The trainer takes longest to import, so its import runs in
        # parallel.
        model = manifest.spec.model
        if model is not None:
            check_model(model.uri, model.revision, context_of(manifest).model_token)
        game = manifest.spec.game
        data = _resolve(game, "data")
        Thread(target=_import_early, args=(game.trainer.use, "trainer"), name="import trainer", daemon=True).start()
        rewards = _resolve(game, "rewards")
        trial = try_game(
            progression_of(manifest),
            cast(type[DataManager], data.component),
            data.config,
            cast(type[RewardManager], rewards.component),
            rewards.config,
            context_of(manifest, folder=folder.absolute()),
            roles=roles_of(manifest),
            replicas=manifest.spec.peers.replicas,
        )
        resolved = ResolvedGame(
            data=data,
            rewards=rewards,
            trainer=_resolve(game, "trainer"),
            folder=folder.absolute(),
            trackers=_resolve_trackers(manifest),
            warnings=trial.warnings,
            environment=_resolve_environment(game),
        )
        trainer = cast(type[Trainer], resolved.trainer.component)
        _check_environment(game, trainer, rewards)
        processes = manifest.spec.peers.processes_per_peer
        doubts = trainer.doubts(resolved.trainer.config, None if processes == "auto" else processes)
        if model is None and trainer.needs_model:
            expected = f"a model, which the trainer {game.trainer.use} trains, such as {{uri: builtin://tiny}}"
            raise InvalidManifest("spec.model", None, expected)
        if model is not None and model.export is not None:
            check_adapters(model.export, trainer.makes_adapters(resolved.trainer.config))
        shares = game.sharing.external_groups > 0
        where, asked = folder.absolute(), trial.question
        with tried_environment(game.environment, where, asked, shares=shares, seed=game.seed) as (episodes, failed):
            context = context_of(manifest, folder=where, episodes=episodes)
            found = trainer.check_with(resolved.trainer.config, context, trial.prompt, load_model=load_model)
        return replace(resolved, warnings=(*resolved.warnings, *doubts, *failed, *found))


def check_adapters(export: ExportSpec, found: bool | None) -> None:
    """Check that a trainer has adapters, where its exports keep them apart.

    Args:
        found: whether it has; None where that is not known yet.

    Raises:
        InvalidManifest: it has none.
    """
    if export.adapters == "Separate" and found is False:
        expected = "Merged: the trainer has no adapters (grpo has them with spec.game.trainer.with.lora)"
        raise InvalidManifest("spec.model.export.adapters", "Separate", expected)


def resolve_game(manifest: SwarmGame, folder: Path) -> ResolvedGame:
    """Return the components, found and valid. Mistakes that only creating the data shows are left to `assemble`.

    Raises:
        InvalidManifest: with the path of what is wrong.
    """
    game = manifest.spec.game
    with local_modules(folder):
        return ResolvedGame(
            data=_resolve(game, "data"),
            rewards=_resolve(game, "rewards"),
            trainer=_resolve(game, "trainer"),
            folder=folder.absolute(),
            trackers=_resolve_trackers(manifest),
            environment=_resolve_environment(game),
        )


def _resolve_environment(game: GameSpec) -> ResolvedEnvironment | None:
    if game.environment is None:
        return None
    found = _resolve(game, "environment")
    return ResolvedEnvironment(found.component, found.config, game.environment)


def _check_environment(game: GameSpec, trainer: type[Trainer], rewards: ResolvedComponent) -> None:
    if game.environment is not None and not trainer.plays_episodes:
        expected = "a trainer that plays with an environment, such as grpo; or leave out spec.game.environment"
        raise InvalidManifest("spec.game.trainer.use", game.trainer.use, expected)
    component = cast(type[RewardManager], rewards.component)
    if game.environment is None and component.needs_environment(rewards.config):
        expected = "an environment, whose rewards these are, such as {use: number-guessing}"
        raise InvalidManifest("spec.game.environment", None, expected)


def resolve_data(manifest: SwarmGame) -> ResolvedComponent:
    """Return the data alone, found and valid: without the imports of the trainer."""
    return _resolve(manifest.spec.game, "data")


def resolved_data(manifest: SwarmGame, resolved: ResolvedGame) -> dict[str, Any]:
    """Return the manifest as plain data with every default, those of the `with` blocks included."""
    data = manifest_data(manifest)
    for name in ("data", "rewards", "trainer"):
        data["spec"]["game"][name]["with"] = _options(getattr(resolved, name))
    if manifest.spec.game.environment is not None and resolved.environment is not None:
        data["spec"]["game"]["environment"]["with"] = _options(resolved.environment)
    trackers = data["spec"].get("observability", {}).get("trackers", ())
    for entry, tracker in zip(trackers, resolved.trackers, strict=True):
        entry["with"] = _options(tracker)
    return data


def _options(resolved: ResolvedComponent) -> dict[str, Any]:
    return resolved.config.model_dump(mode="json", by_alias=True)


def context_of(manifest: SwarmGame, /, **changes: object) -> ComponentContext:
    """Return the context of a manifest's components; `changes` are fields of `ComponentContext`.

    Raises:
        BadUsage: the environment cannot be used.
    """
    model = manifest.spec.model
    try:
        settings = read_settings(ComponentSettings, os.environ)
    except InvalidSettings as error:
        raise BadUsage(str(error)) from error
    context = ComponentContext(
        seed=manifest.spec.game.seed,
        stages=manifest.spec.game.stages,
        model_uri=model.uri if model else "",
        model_revision=model.revision if model else "",
        model_token=settings.model_token_file,
        sampler_url=settings.sampler_url,
        sampler_weights=settings.sampler_weights,
        max_influence=manifest.spec.game.sharing.influence_fraction,
        influence_part=manifest.spec.game.sharing.influence_part,
    )
    if settings.cache is not None:
        context = replace(context, cache=settings.cache)
    return replace(context, **changes)  # type: ignore[arg-type]


def assemble(resolved: ResolvedGame, context: ComponentContext, rewards: RewardManager | None = None) -> Components:
    """Create the components. The trainer's context holds the demonstrations, when the data has any.

    Args:
        rewards: used instead of the game's own, where another rank computes them.
    """
    episodes = shared = None
    if resolved.environment is not None:
        episodes = episodes_of(resolved.environment.spec, context.folder, context.seed, context.remote_work)
        shared = shared_episodes(episodes, context.ranks)
        context = replace(context, episodes=episodes)
    data = cast(DataManager, resolved.data.component(resolved.data.config, context))
    if rewards is None:
        rewards = cast(RewardManager, resolved.rewards.component(resolved.rewards.config, context))
    for_trainer = replace(context, demonstrations=data if isinstance(data, Demonstrations) else None)
    trainer = cast(Trainer, resolved.trainer.component(resolved.trainer.config, for_trainer))
    return Components(data if shared is None else EnvironmentData(data, shared), rewards, trainer, shared)


def prepare(manifest: SwarmGame, folder: Path) -> None:
    """Fill the model cache, so that no peer has to: warm-start a builtin model, convert that of a package, or download
    one from the hub.

    Raises:
        InvalidManifest: there is no such model, or the data cannot be created.
        Temporary: the hub did not answer.
    """
    if manifest.spec.model is None:
        return
    from swarmgame.models.loading import fetch
    from swarmgame.models.warmstart import ensure_model

    with local_modules(folder):
        resolved = resolve_data(manifest)
        context = context_of(manifest, folder=folder.absolute())
        data = resolved.component(resolved.config, context)
        try:
            fetch(ensure_model(replace(context, demonstrations=data if isinstance(data, Demonstrations) else None)))
        finally:
            data.close()


def progression_of(manifest: SwarmGame) -> Progression:
    """Return the numbers that the loop needs."""
    game = manifest.spec.game
    sharing, evaluation = game.sharing, game.evaluation
    return Progression(
        max_rounds=game.max_rounds,
        stages=game.stages,
        seed=game.seed,
        exchange=Exchange(game.exchange),
        quorum=game.progression.quorum_fraction,
        stage_deadline_seconds=game.progression.stage_deadline_seconds,
        sharing=ExternalSamplingPolicy(
            sharing.external_groups, sharing.strategy, sharing.max_per_peer, sharing.max_staleness_rounds
        ),
        single_peer=manifest.spec.peers.replicas == 1,
        stop_when_isolated=game.progression.when_alone == "Stop",
        evaluate_every=evaluation.every_rounds if evaluation else 0,
        evaluation_questions=evaluation.questions if evaluation else 0,
        evaluation_sampling=(
            Sampling(evaluation.samples, evaluation.sampling_temperature) if evaluation and evaluation.samples else None
        ),
    )


def roles_of(manifest: SwarmGame) -> RoleManager:
    """Return what assigns the roles. The author's modules must be importable."""
    roles = [Role(role.name, role.count, role.share_fraction) for role in manifest.spec.game.roles]
    spec = manifest.spec.game.role_manager
    if spec is None:
        return RoleManager(roles)
    found = _resolve_at("spec.game.roleManager", spec.use, spec.with_, "role manager")
    with explained(found.component, "its constructor"):
        return cast(type[RoleManager], found.component)(roles, found.config, context_of(manifest))


# ── finding one component


def _resolve(game: GameSpec, kind: str) -> ResolvedComponent:
    spec: ComponentSpec = getattr(game, kind)
    return _resolve_at(f"spec.game.{kind}", spec.use, spec.with_, kind)


def _resolve_trackers(manifest: SwarmGame) -> tuple[ResolvedComponent, ...]:
    found = []
    for number, spec in enumerate(manifest.spec.observability.trackers):
        path = f"spec.observability.trackers[{number}]"
        resolved = _resolve_at(path, spec.use, spec.with_, "tracker")
        cast(type[Tracker], resolved.component).require_package(path)
        found.append(resolved)
    return tuple(found)


def _resolve_at(path: str, use: str, options: Mapping[str, Any], kind: str) -> ResolvedComponent:
    component = _find(use, kind, f"{path}.use")
    return ResolvedComponent(component, validate_config(component, options, f"{path}.with"))


def _find(name: str, kind: str, path: str) -> type[Component]:
    group, base = GROUPS[kind]
    return find_component(name, base, group=group, path=path)


def _import_early(name: str, kind: str) -> None:
    """Import a component ahead of time. An error is raised again, and reported, when it is needed."""
    with suppress(InvalidManifest):
        _find(name, kind, f"spec.game.{kind}.use")
