"""What becomes of the two Jobs: made, left alone, scaled, made anew, or ended.

The peers' Job waits for what it needs (keys, the bootnode's id, a full cache), and is asked about beforehand where its
author wrote into the pod. Deleting is in the foreground: a Job that is gone has no pods, so that no two pods hold one
key. Invariant: a Job of peers that run is ended only by its author (suspend, or other pods), or because the game is
over.
"""

from __future__ import annotations

from dataclasses import dataclass

from swarmgame_operator.observed import JobFacts
from swarmgame_operator.plan import initializer
from swarmgame_operator.plan.children import differing
from swarmgame_operator.plan.identity import missing_peer_keys
from swarmgame_operator.plan.outcome import Child, DryRun, Reference
from swarmgame_operator.plan.peer_job import peer_job, template_hash
from swarmgame_operator.plan.scene import Scene, job_says
from swarmgame_operator.plan.setting import digest

ENDS = ("Complete", "Failed", "SuccessCriteriaMet", "FailureTarget")


@dataclass(frozen=True, slots=True)
class Step:
    """What to do about a Job.

    Args:
        rolling: it is being replaced by one with other pods.
    """

    children: tuple[Child, ...] = ()
    deletions: tuple[Reference, ...] = ()
    dry_run: DryRun | None = None
    rolling: bool = False


def dry_run_of(child: Child) -> DryRun:
    """The question whether the API server would make such a Job. Its name is generated: one of its own name may be
    there.
    """
    creation = child.creation or child.manifest
    numbers = ("parallelism", "completions", "maxFailedIndexes")
    spec = {key: entry for key, entry in creation["spec"].items() if key not in numbers}
    metadata = {key: entry for key, entry in creation["metadata"].items() if key != "name"}
    manifest = {**creation, "metadata": {**metadata, "generateName": f"{child.name}-"}}
    return DryRun(digest([creation["metadata"]["labels"], spec]), manifest)


def peers_step(scene: Scene, *, accepted: bool, playing: bool, over: bool) -> Step:
    """The peers' Job.

    Args:
        accepted: whether the game may get anything new.
        playing: whether there should be a Job: neither suspended by its author nor over.
    """
    job = scene.job
    if job is not None and job.deleting:
        return Step(rolling=playing and _outdated(scene, job))
    if not playing:
        return Step(deletions=(_ended(job),) if job is not None and not (over and _finished(job)) else ())
    child = peer_job(scene.setting)
    if job is None:
        return _create(scene, child) if accepted else Step()
    if _finished(job) or not accepted:
        return Step()
    if _outdated(scene, job):
        asked = _question(scene, child)
        return Step(dry_run=asked, rolling=True) if asked is not None else Step(deletions=(_ended(job),), rolling=True)
    if missing_peer_keys(scene.setting, scene.observed.secrets):
        return Step()
    return Step(children=differing((child,), scene.observed.children))


def initializer_step(scene: Scene, *, accepted: bool, playing: bool) -> Step:
    """The Job that fills the cache, where a Job does."""
    job = scene.observed.initializer
    needed = initializer.is_a_job(scene.setting)
    if job is None:
        make = needed and playing and accepted and scene.job is None
        return Step(
            children=differing((initializer.initializer_job(scene.setting),), scene.observed.children) if make else ()
        )
    if job.deleting:
        return Step()
    outdated = scene.job is None and job.template_hash != initializer.initializer_hash(scene.setting)
    if not needed or (playing and outdated) or (not playing and not _finished(job)):
        return Step(deletions=(_ended(job),))
    return Step()


def cache_is_ready(scene: Scene) -> bool:
    """Whether peers may start: the cache is full, or fills itself in their pods."""
    if not initializer.is_a_job(scene.setting):
        return True
    job = scene.observed.initializer
    right = job is not None and job.template_hash == initializer.initializer_hash(scene.setting)
    return right and job_says(job, "Complete", "SuccessCriteriaMet") is not None


def _create(scene: Scene, child: Child) -> Step:
    setting = scene.setting
    waits = missing_peer_keys(setting, scene.observed.secrets) or (setting.has_bootnode and not setting.bootnode_peer)
    if waits or not cache_is_ready(scene):
        return Step()
    asked = _question(scene, child)
    return Step(dry_run=asked) if asked is not None else Step(children=differing((child,), scene.observed.children))


def _question(scene: Scene, child: Child) -> DryRun | None:
    """What still has to be asked; None where the answer is known, or nothing of the pods is the author's own."""
    peers = scene.spec.peers
    free = bool(peers.pod_template.spec) or any(variable.value_from for variable in peers.env)
    asked = dry_run_of(child)
    answered = scene.observed.dry_run is not None and scene.observed.dry_run.hash == asked.hash
    return asked if free and not answered else None


def _outdated(scene: Scene, job: JobFacts) -> bool:
    return bool(job.template_hash) and job.template_hash != template_hash(scene.setting)


def _finished(job: JobFacts) -> bool:
    return job_says(job, *ENDS) is not None


def _ended(job: JobFacts) -> Reference:
    return Reference("Job", job.name, "Foreground")
