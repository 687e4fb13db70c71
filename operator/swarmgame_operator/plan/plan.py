"""`build_plan`: the desired children and the status of a game.

Evaluates the conditions, derives from them what to write and to delete, and writes the status. A plan that was carried
out is followed by one with nothing to do.
"""

from __future__ import annotations

from datetime import datetime

from swarmgame_api.resource import MANAGER, GameResource
from swarmgame_api.status import BootnodeStatus, CoordinationStatus
from swarmgame_operator.defaults import Defaults
from swarmgame_operator.plan import storage
from swarmgame_operator.plan.children import desired_children, needs_update, orphans
from swarmgame_operator.plan.condition_policy import ConditionUpdate
from swarmgame_operator.plan.conditions import evaluate_conditions
from swarmgame_operator.plan.conditions.accepted import MANAGED_EXTERNALLY, invalid_manifest
from swarmgame_operator.plan.deadlines import seconds_to_deadline, seconds_to_live
from swarmgame_operator.plan.game_context import GameContext
from swarmgame_operator.plan.key_secrets import key_secrets
from swarmgame_operator.plan.obstacles import seconds_to_obstacle, to_read
from swarmgame_operator.plan.peer_health import SHOWN, peer_counts, unhealthy_peers
from swarmgame_operator.plan.peer_job import JOB
from swarmgame_operator.plan.plan_types import Plan
from swarmgame_operator.plan.progress import (
    checkpoint_status,
    progress_status,
    seconds_to_silence,
    seconds_to_stall,
)
from swarmgame_operator.plan.reconcile_context import ReconcileContext, write_time
from swarmgame_operator.plan.rollout import initializer_step, peers_step
from swarmgame_operator.plan.services import DEV_CHAIN_ID, contract, public_address
from swarmgame_operator.plan.status_conditions import condition_events, merge_conditions
from swarmgame_operator.plan.unplanned import not_served, plan_failed
from swarmgame_operator.snapshot import Observed


def build_plan(game: GameResource, observed: Observed, defaults: Defaults) -> Plan:
    """Return what the cluster should hold for this game, and its status.

    Pure: the same input gives the same output, and `observed.now` is the only clock.
    """
    if game.deleted is not None:
        return Plan(game.status)  # owner references do the rest
    if game.managed_by != MANAGER:
        if game.status.conditions:
            return Plan(game.status)  # the other controller's, or our own earlier note
        return _only_condition(game, observed.now, MANAGED_EXTERNALLY(manager=game.managed_by))
    if game.game is None:
        return _only_condition(game, observed.now, invalid_manifest(game.problems))
    context = GameContext(game, game.game, defaults, observed.bootnode_peer, observed.peer_ids)
    return _plan(ReconcileContext(context, observed, game.status))


def plan_of_unserved(game: GameResource, now: datetime, kind: str, error: str) -> Plan:
    """Return the plan of a game whose namespace the operator cannot watch, or (no kind) whose references it cannot
    read: one condition, which says why.
    """
    if game.managed_by != MANAGER or game.deleted is not None:
        return Plan(game.status)
    return _only_condition(game, now, not_served(kind, error))


def plan_of_failure(game: GameResource, now: datetime, error: Exception) -> Plan:
    """Return the plan of a game for which `build_plan` raised an error: one condition, which quotes it."""
    if game.managed_by != MANAGER or game.deleted is not None:
        return Plan(game.status)
    return _only_condition(game, now, plan_failed(error))


def _only_condition(game: GameResource, now: datetime, update: ConditionUpdate) -> Plan:
    """Return a plan that sets one condition. What runs already goes on."""
    conditions = merge_conditions(game.status, [update], now, game.generation)
    status = game.status.model_copy(update={"observed_generation": game.generation, "conditions": conditions})
    return Plan(status, events=condition_events(game.status, conditions))


def _plan(context: ReconcileContext) -> Plan:
    game, observed, before = context.game, context.observed, context.before
    evaluate_conditions(context)
    over = context.over

    peers, filling = peers_step(context), initializer_step(context)
    desired = desired_children(game, running=context.playing, over=over)
    secrets = key_secrets(game, observed.secrets, observed.children) if context.accepted and not over else ()
    # Other children contain the ids of the bootnode and of the peers, so their keys come first.
    has_id = bool(observed.bootnode_peer) or not game.has_bootnode
    allowed = over or (context.accepted and has_id and not any(each.missing for each in secrets))
    needed = [child for child in desired if child.name != context.kept_claim]
    children = needs_update(needed, observed.children, only_existing=over) if allowed else ()
    deletions = orphans(desired, observed.children, game.resource.uid) if allowed else ()
    claims = storage.claims_to_delete(game, observed.children, over=over)

    conditions = merge_conditions(before, context.updates.values(), observed.now, game.resource.generation)
    now = write_time(observed.now)
    status = before.model_copy(
        update={
            "observed_generation": game.resource.generation,
            "start_time": before.start_time or (now if context.accepted and not context.suspended else None),
            "completion_time": (before.completion_time or now) if over else None,
            "selector": ",".join(f"{key}={value}" for key, value in sorted(game.selector("peer").items())),
            "replicas": len(context.active_pods),
            "peers": peer_counts(context),
            "bootnode": BootnodeStatus(
                ready=game.has_bootnode and context.bootnode_ready, address=public_address(game, observed)
            ),
            "unhealthy_peers": () if over else unhealthy_peers(context)[:SHOWN],
            "progress": progress_status(context),
            "coordination": _coordination(context),
            "checkpoint": checkpoint_status(context),
            "job_name": game.name(JOB),
            "template_hash": (context.job.template_hash if context.job is not None else "") or game.template_hash,
            "conditions": conditions,
        }
    )
    reading = to_read(context)
    after = ReconcileContext(game, observed, status, context.updates)
    to_live = seconds_to_live(after) if over else None
    return Plan(
        status,
        keys=secrets,
        children=(*children, *filling.children, *peers.children),
        deletions=(*peers.deletions, *filling.deletions, *deletions, *claims),
        dry_run=peers.dry_run,
        diagnose=reading,
        delete_game=to_live is not None and to_live <= 0,
        events=condition_events(before, conditions),
        requeue_after=0.0 if secrets or peers.dry_run is not None or reading else _requeue_after(after, to_live),
    )


def _coordination(context: ReconcileContext) -> CoordinationStatus | None:
    if not context.game.has_chain:
        return None
    chain, last = context.observed.chain, context.before.coordination or CoordinationStatus()
    return CoordinationStatus(
        contract_address=contract(context.game),
        chain_id=context.spec.coordination.chain_id or DEV_CHAIN_ID,
        round=max(0, chain.round) if chain is not None else last.round,
        last_observed_block=chain.last_block if chain is not None else last.last_observed_block,
    )


def _requeue_after(context: ReconcileContext, to_live: float | None) -> float | None:
    """Return the seconds until time alone may change the plan."""
    if context.over:
        waits = [None if to_live is None else max(0.0, to_live), seconds_to_obstacle(context)]
        return min((each for each in waits if each is not None), default=None)
    waits = [seconds_to_deadline(context), seconds_to_obstacle(context)]
    if not context.suspended:
        waits.append(seconds_to_stall(context, context.before.progress))
        waits.append(seconds_to_silence(context))
    return min((each for each in waits if each is not None), default=None)
