"""Accepted: whether the game can be played in this cluster. Nothing is created for a game that is not accepted.

Checked in order: the manifest, the cluster, the objects that the game refers to, the API server's answer about its
pods, and how its own pods ended. Every message names the field or the object that the user has to change.
"""

from __future__ import annotations

from collections.abc import Iterator

from swarmgame_api.errors import Problem
from swarmgame_api.quantities import OBJECT_NAME
from swarmgame_operator.plan import initializer
from swarmgame_operator.plan.condition_policy import ConditionPolicy, ConditionUpdate, Reason
from swarmgame_operator.plan.devices import device_problem
from swarmgame_operator.plan.peer_job import peer_job
from swarmgame_operator.plan.pod_levels import level_problems
from swarmgame_operator.plan.reconcile_context import (
    IMAGE_ERRORS,
    ReconcileContext,
    job_condition_reason,
    termination_summary,
)
from swarmgame_operator.plan.references import impossible_references, references
from swarmgame_operator.plan.rollout import dry_run_of

MIN_VERSION = (1, 34)
MIN_VERSION_FOR_IMAGE_VOLUMES = (1, 35)
SHOWN_PROBLEMS = 5
SHOWN_MISSING = 8
SHOWN_NAME = 253

VALID = Reason("Accepted", "True", "Valid", "The game is valid, and what it refers to exists.")
INVALID_GAME = Reason("Accepted", "False", "InvalidGame", "The game cannot be played: {problems}", warning=True)
INVALID_POD_TEMPLATE = Reason(
    "Accepted", "False", "InvalidPodTemplate", "The peers' pods cannot be created: {problem}", warning=True
)
SECRET_NOT_FOUND = Reason(
    "Accepted", "False", "SecretNotFound", "Missing: {missing}. Create it in the game's namespace.", warning=True
)
MODULE_NOT_FOUND = Reason(
    "Accepted", "False", "ModuleNotFound", "A module of the game is missing: {problem}", warning=True
)
MODEL_NOT_FOUND = Reason(
    "Accepted", "False", "ModelNotFound", "The model could not be brought into the cache: {problem}", warning=True
)
UNSUPPORTED_CLUSTER = Reason("Accepted", "False", "UnsupportedCluster", "{problem}", warning=True)
MANAGED_EXTERNALLY = Reason(
    "Accepted",
    "False",
    "ManagedExternally",
    "spec.managedBy names {manager}; this operator ignores the game.",
    warning=True,
)


def invalid_manifest(problems: tuple[Problem, ...]) -> ConditionUpdate:
    """Return the condition of a game whose manifest is not valid."""
    more = f"; and {len(problems) - SHOWN_PROBLEMS} more" if len(problems) > SHOWN_PROBLEMS else ""
    return INVALID_GAME(problems="; ".join(map(str, problems[:SHOWN_PROBLEMS])) + more)


def accepted_condition(context: ReconcileContext) -> ConditionUpdate:
    """Return the first problem, or Valid."""
    of_the_game = (_cluster, _sampler, _devices)
    checks = (*of_the_game, _names, _secrets, _config_maps, _claims, _pod_template, _pods, _module_images, _model)
    return next((update for check in checks if (update := check(context)) is not None), VALID())


def _cluster(context: ReconcileContext) -> ConditionUpdate | None:
    version = context.observed.cluster_version
    found = ".".join(map(str, version))
    if version < MIN_VERSION:
        return UNSUPPORTED_CLUSTER(
            problem=f"This is Kubernetes {found}; expected at least {'.'.join(map(str, MIN_VERSION))}."
        )
    with_images = any(module.image is not None for module in context.spec.game.modules)
    if version < MIN_VERSION_FOR_IMAGE_VOLUMES and with_images:
        return UNSUPPORTED_CLUSTER(
            problem=f"This is Kubernetes {found}; spec.game.modules with an image need image volumes, of 1.35. "
            "Use configMapRef, or a peers.image that holds the module."
        )
    return None


def _sampler(context: ReconcileContext) -> ConditionUpdate | None:
    """Check that a vLLM server beside the peer can load the model itself, because it starts before the peer."""
    model = context.spec.model
    if context.game.vllm_sidecar is None or (model is not None and model.uri.startswith(("hf://", "file://"))):
        return None
    found = f"spec.model.uri is {model.uri}" if model is not None else "spec.model is missing"
    return INVALID_GAME(
        problems=f"{found}; expected hf:// or file:// with spec.game.trainer.with.sampler.engine vllm: "
        "the server beside the peer loads the model itself."
    )


def _devices(context: ReconcileContext) -> ConditionUpdate | None:
    problem = device_problem(context.game)
    return INVALID_GAME(problems=problem) if problem else None


def _names(context: ReconcileContext) -> ConditionUpdate | None:
    """Report a variable's reference by a name that no object can have: the API server is not asked for it."""
    for variable, field, name in impossible_references(context.game.manifest, context.game.defaults):
        problem = f'the variable {variable} has {field} "{name[:SHOWN_NAME]}"; expected {OBJECT_NAME}.'
        return INVALID_POD_TEMPLATE(problem=problem)
    return None


def _secrets(context: ReconcileContext) -> ConditionUpdate | None:
    missing = list(_missing(context, "Secret"))
    return SECRET_NOT_FOUND(missing="; ".join(missing[:SHOWN_MISSING])) if missing else None


def _config_maps(context: ReconcileContext) -> ConditionUpdate | None:
    existing = context.observed.config_maps
    for number, module in enumerate(context.spec.game.modules):
        if module.config_map_ref is not None and module.config_map_ref.name not in existing:
            path = f"spec.game.modules[{number}].configMapRef.name"
            return MODULE_NOT_FOUND(
                problem=f"{path} is {module.config_map_ref.name}; there is no such ConfigMap in the game's namespace."
            )
    missing = list(_missing(context, "ConfigMap"))
    if not missing:
        return None
    where = "spec.podDefaults.env, spec.peers.env or the chart's games.podDefaults.env"
    place = where if context.game.pod_levels else "spec.peers.env"
    return INVALID_POD_TEMPLATE(problem=f"{place} refers to what is missing: {'; '.join(missing[:SHOWN_MISSING])}")


def _missing(context: ReconcileContext, kind: str) -> Iterator[str]:
    required = references(context.game.manifest, context.game.defaults)
    needed = required.secrets if kind == "Secret" else required.config_maps
    existing = context.observed.secrets if kind == "Secret" else context.observed.config_maps
    for name, keys in sorted(needed.items()):
        if name not in existing:
            yield f"the {kind} {name}"
        else:
            yield from (f"the key {key} of the {kind} {name}" for key in sorted(keys - existing[name]))


def _claims(context: ReconcileContext) -> ConditionUpdate | None:
    missing = sorted(references(context.game.manifest, context.game.defaults).claims - context.observed.claims)
    if not missing:
        return None
    return INVALID_POD_TEMPLATE(
        problem=f"spec.storage names the PersistentVolumeClaim {missing[0]}, and there is none in the game's namespace."
    )


def _pod_template(context: ReconcileContext) -> ConditionUpdate | None:
    problem = next(level_problems(context.game.pod_levels), "")
    if problem:
        return INVALID_POD_TEMPLATE(problem=f"in spec.podDefaults or the chart's games.podDefaults {problem}.")
    answer = context.observed.dry_run
    if answer is None or not answer.error or context.desired == 0:
        return None
    dry_run = dry_run_of(peer_job(context.game))
    return INVALID_POD_TEMPLATE(problem=answer.error) if answer.hash == dry_run.hash else None


def _pods(context: ReconcileContext) -> ConditionUpdate | None:
    if context.fatal is None:
        return None
    _, container = context.fatal
    summary = termination_summary(container)
    if "spec.model" in container.termination_message:
        return MODEL_NOT_FOUND(problem=summary)
    return INVALID_GAME(problems=summary)


def _module_images(context: ReconcileContext) -> ConditionUpdate | None:
    images = [module.image.reference for module in context.spec.game.modules if module.image is not None]
    for pod in context.observed.pods:
        for container in pod.containers:
            message = container.waiting_message
            if container.waiting in IMAGE_ERRORS and any(image in message for image in images):
                return MODULE_NOT_FOUND(problem=f"its image cannot be pulled: {message}")
    return None


def _model(context: ReconcileContext) -> ConditionUpdate | None:
    """Report an initializer that gave up on a problem that might have passed, such as an unreachable hub."""
    job = context.observed.initializer
    if not initializer.is_a_job(context.game) or job is None or job_condition_reason(job, "Failed") is None:
        return None
    if job.template_hash != initializer.initializer_hash(context.game):
        return None
    ended = [each for pod in context.observed.pods_of("initializer") for each in pod.containers if each.exit_code]
    return MODEL_NOT_FOUND(
        problem=termination_summary(ended[-1]) if ended else "the initializer gave up, and its pods are gone"
    )


ACCEPTED = ConditionPolicy(
    "Accepted",
    (
        VALID,
        INVALID_GAME,
        INVALID_POD_TEMPLATE,
        SECRET_NOT_FOUND,
        MODULE_NOT_FOUND,
        MODEL_NOT_FOUND,
        UNSUPPORTED_CLUSTER,
        MANAGED_EXTERNALLY,
    ),
    accepted_condition,
)
