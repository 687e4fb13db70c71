"""Acceptance: whether the game can be played here at all; the first of the conditions, and the gate of all that is
made.

Asked in order: the manifest, the cluster, what the game refers to, what the API server said of its pods, what its own
pods said of it. Invariant: a verdict names the field or the object that its reader has to mend.
"""

from __future__ import annotations

from collections.abc import Iterator

from swarmgame_api.errors import Problem
from swarmgame_operator import reasons
from swarmgame_operator.plan import initializer
from swarmgame_operator.plan.peer_job import peer_job
from swarmgame_operator.plan.references import references
from swarmgame_operator.plan.rollout import dry_run_of
from swarmgame_operator.plan.scene import IMAGE_ERRORS, Scene, job_says, last_words
from swarmgame_operator.reasons import Verdict

OLDEST = (1, 33)
OLDEST_FOR_IMAGE_VOLUMES = (1, 35)
SHOWN_PROBLEMS = 5
SHOWN_MISSING = 8


def unreadable(problems: tuple[Problem, ...]) -> Verdict:
    """The verdict on a spec that cannot be used."""
    more = f"; and {len(problems) - SHOWN_PROBLEMS} more" if len(problems) > SHOWN_PROBLEMS else ""
    return reasons.invalid_game("; ".join(map(str, problems[:SHOWN_PROBLEMS])) + more)


def acceptance(scene: Scene) -> Verdict:
    checks = (_cluster, _sampler, _secrets, _config_maps, _claims, _pod_template, _pods, _modules_pulled, _model)
    return next((verdict for check in checks if (verdict := check(scene)) is not None), reasons.valid())


def _cluster(scene: Scene) -> Verdict | None:
    version = scene.observed.cluster_version
    found = ".".join(map(str, version))
    if version < OLDEST:
        return reasons.unsupported_cluster(
            f"This is Kubernetes {found}; peers need a Job's backoffLimitPerIndex and successPolicy, of 1.33."
        )
    if version < OLDEST_FOR_IMAGE_VOLUMES and any(module.image is not None for module in scene.spec.game.modules):
        return reasons.unsupported_cluster(
            f"This is Kubernetes {found}; spec.game.modules with an image need image volumes, of 1.35. Use configMapRef, or a peers.image "
            "that holds the module."
        )
    return None


def _sampler(scene: Scene) -> Verdict | None:
    """A server beside the peer starts before it, so it must be able to load the model by itself."""
    model = scene.spec.model
    if scene.setting.vllm_sidecar is None or (model is not None and not model.uri.startswith("builtin://")):
        return None
    found = f"spec.model.uri is {model.uri}" if model is not None else "spec.model is missing"
    return reasons.invalid_game(
        f"{found}; expected hf:// or file:// with spec.game.trainer.with.sampler.engine vllm: the server beside the peer loads the model itself."
    )


def _secrets(scene: Scene) -> Verdict | None:
    missing = list(_missing(scene, "Secret"))
    return reasons.secret_not_found(missing[:SHOWN_MISSING]) if missing else None


def _config_maps(scene: Scene) -> Verdict | None:
    there = scene.observed.config_maps
    for number, module in enumerate(scene.spec.game.modules):
        if module.config_map_ref is not None and module.config_map_ref.name not in there:
            place = f"spec.game.modules[{number}].configMapRef.name"
            return reasons.module_not_found(
                f"{place} is {module.config_map_ref.name}; there is no such ConfigMap in the game's namespace."
            )
    missing = list(_missing(scene, "ConfigMap"))
    return (
        reasons.invalid_pod_template(f"spec.peers.env refers to what is missing: {'; '.join(missing[:SHOWN_MISSING])}")
        if missing
        else None
    )


def _missing(scene: Scene, kind: str) -> Iterator[str]:
    wanted = references(scene.setting.game)
    needed = wanted.secrets if kind == "Secret" else wanted.config_maps
    there = scene.observed.secrets if kind == "Secret" else scene.observed.config_maps
    for name, keys in sorted(needed.items()):
        if name not in there:
            yield f"the {kind} {name}"
        else:
            yield from (f"the key {key} of the {kind} {name}" for key in sorted(keys - there[name]))


def _claims(scene: Scene) -> Verdict | None:
    missing = sorted(references(scene.setting.game).claims - scene.observed.claims)
    if not missing:
        return None
    return reasons.invalid_pod_template(
        f"spec.storage names the PersistentVolumeClaim {missing[0]}, and there is none in the game's namespace."
    )


def _pod_template(scene: Scene) -> Verdict | None:
    answer = scene.observed.dry_run
    if answer is None or not answer.error or scene.desired == 0:
        return None
    asked = dry_run_of(peer_job(scene.setting))
    return reasons.invalid_pod_template(answer.error) if answer.hash == asked.hash else None


def _pods(scene: Scene) -> Verdict | None:
    if scene.fatal is None:
        return None
    _, container = scene.fatal
    words = last_words(container)
    return (
        reasons.model_not_found(words) if "spec.model" in container.termination_message else reasons.invalid_game(words)
    )


def _modules_pulled(scene: Scene) -> Verdict | None:
    images = [module.image.reference for module in scene.spec.game.modules if module.image is not None]
    for pod in scene.observed.pods:
        for container in pod.containers:
            words = container.waiting_message
            if container.waiting in IMAGE_ERRORS and any(image in words for image in images):
                return reasons.module_not_found(f"its image cannot be pulled: {words}")
    return None


def _model(scene: Scene) -> Verdict | None:
    """The initializer gave up on something that might have passed, such as a hub that is away."""
    if not initializer.is_a_job(scene.setting) or job_says(scene.observed.initializer, "Failed") is None:
        return None
    if scene.observed.initializer is None or scene.observed.initializer.template_hash != initializer.initializer_hash(
        scene.setting
    ):
        return None
    ended = [each for pod in scene.observed.pods_of("initializer") for each in pod.containers if each.exit_code]
    return reasons.model_not_found(last_words(ended[-1]) if ended else "the initializer gave up, and its pods are gone")
