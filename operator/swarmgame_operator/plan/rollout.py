"""The two Jobs: when they are created, scaled, replaced and deleted.

The peers' Job waits for its keys, the bootnode's id and a full cache. If its author wrote into the pod, a dry run
comes first. A Job is deleted in the foreground: when it is gone its pods are gone, so no two pods use
one key. A Job whose peers run is only deleted if its author suspends or changes the game, or the game is over; and a
change waits for a suspension where the peers would lose rounds, because their checkpoints are not on a claim, or new
pods would use another one.
"""

from __future__ import annotations

from dataclasses import dataclass

from swarmgame_operator.plan import initializer
from swarmgame_operator.plan.children import needs_update, taken
from swarmgame_operator.plan.game_context import digest
from swarmgame_operator.plan.key_secrets import missing_peer_keys
from swarmgame_operator.plan.peer_job import peer_job
from swarmgame_operator.plan.plan_types import Child, Deletion, DryRun
from swarmgame_operator.plan.reconcile_context import ReconcileContext, job_condition_reason
from swarmgame_operator.snapshot import JobFacts

ENDS = ("Complete", "Failed", "SuccessCriteriaMet", "FailureTarget")


@dataclass(frozen=True, slots=True)
class RolloutStep:
    """The writes of one Job."""

    children: tuple[Child, ...] = ()
    deletions: tuple[Deletion, ...] = ()
    dry_run: DryRun | None = None


def dry_run_of(child: Child) -> DryRun:
    """Return the dry run of a Job. Its name is generated, because a Job of its own name may exist."""
    manifest = child.create_manifest or child.apply_manifest
    numbers = ("parallelism", "completions", "maxFailedIndexes")
    spec = {key: entry for key, entry in manifest["spec"].items() if key not in numbers}
    metadata = {key: entry for key, entry in manifest["metadata"].items() if key != "name"}
    return DryRun(
        digest([manifest["metadata"]["labels"], spec]),
        {**manifest, "metadata": {**metadata, "generateName": f"{child.name}-"}},
    )


def is_rolling_out(context: ReconcileContext) -> bool:
    """Return whether the peers' Job is being replaced by one with other pods."""
    job = context.job
    if job is None or not context.playing or not context.outdated:
        return False
    if job.deleting:
        return True
    return context.accepted and (not _finished(job) or context.plays_on) and not change_waits(context)


def change_waits(context: ReconcileContext) -> bool:
    """Return whether the author has changed the pods of running peers that would lose what they have learnt."""
    job = context.job
    if job is None or job.deleting or not context.playing or _finished(job) or not context.outdated:
        return False
    # On a claim the rounds are kept also while no peer runs: pods that replace them go on from it.
    return context.begun and not context.keeps_rounds and (context.peers_run or bool(job.checkpoints_claim))


def peers_step(context: ReconcileContext) -> RolloutStep:
    """Return the step for the peers' Job."""
    job = context.job
    if job is not None and job.deleting:
        return RolloutStep()
    if not context.playing:
        if job is None or (context.over and _finished(job)):
            return RolloutStep()
        return RolloutStep(deletions=_delete(context, job))
    child = peer_job(context.game)
    if job is None:
        return _create(context, child) if context.accepted else RolloutStep()
    if not context.accepted or (_finished(job) and not context.plays_on):
        return RolloutStep()
    if context.outdated and not change_waits(context):
        dry_run = _open_dry_run(context, child)
        return RolloutStep(dry_run=dry_run) if dry_run is not None else RolloutStep(deletions=_delete(context, job))
    if missing_peer_keys(context.game, context.observed.secrets):
        return RolloutStep()
    if context.outdated:  # the change waits, and the numbers do not
        child = peer_job(context.game, template_hash=job.template_hash)
    return RolloutStep(children=needs_update((child,), context.observed.children))


def initializer_step(context: ReconcileContext) -> RolloutStep:
    """Return the step for the Job that fills the cache, if the game has one."""
    job = context.observed.initializer
    needed = initializer.is_a_job(context.game)
    if job is None:
        if not needed or not context.playing or not context.accepted or context.job is not None:
            return RolloutStep()
        child = initializer.initializer_job(context.game)
        return RolloutStep(children=needs_update((child,), context.observed.children))
    if job.deleting:
        return RolloutStep()
    outdated = context.job is None and job.template_hash != initializer.initializer_hash(context.game)
    if not needed or (context.playing and outdated) or (not context.playing and not _finished(job)):
        return RolloutStep(deletions=_delete(context, job))
    return RolloutStep()


def cache_is_ready(context: ReconcileContext) -> bool:
    """Return whether peers may start: the cache is full, or every pod fills its own."""
    if not initializer.is_a_job(context.game):
        return True
    job = context.observed.initializer
    current = job is not None and job.template_hash == initializer.initializer_hash(context.game)
    return current and job_condition_reason(job, "Complete", "SuccessCriteriaMet") is not None


def _create(context: ReconcileContext, child: Child) -> RolloutStep:
    game = context.game
    waits = missing_peer_keys(game, context.observed.secrets) or (game.has_bootnode and not game.bootnode_peer)
    if waits or context.kept_claim or context.name_is_taken or not cache_is_ready(context):
        return RolloutStep()
    dry_run = _open_dry_run(context, child)
    if dry_run is not None:
        return RolloutStep(dry_run=dry_run)
    return RolloutStep(children=needs_update((child,), context.observed.children))


def _open_dry_run(context: ReconcileContext, child: Child) -> DryRun | None:
    """Return the dry run to do first; None if its answer is known, or if the author wrote nothing into the pod."""
    peers = context.spec.peers
    own_pod = bool(peers.pod_template.spec or context.game.pod_levels) or any(each.value_from for each in peers.env)
    dry_run = dry_run_of(child)
    answered = context.observed.dry_run is not None and context.observed.dry_run.hash == dry_run.hash
    return dry_run if own_pod and not answered else None


def _finished(job: JobFacts) -> bool:
    return job_condition_reason(job, *ENDS) is not None


def _delete(context: ReconcileContext, job: JobFacts) -> tuple[Deletion, ...]:
    facts = context.observed.children.get(("Job", job.name))
    if facts is not None and taken(facts):
        return ()
    return (Deletion("Job", job.name, "Foreground", uid=job.uid),)
