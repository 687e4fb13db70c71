"""The plan as a whole: the policies in their order, and what follows from their verdicts.

Invariant: same input, same plan; and a plan that was carried out is followed by one with nothing to do.
"""

from __future__ import annotations

from swarmgame_api.resource import MANAGER, GameResource
from swarmgame_api.status import BootnodeStatus, CoordinationStatus
from swarmgame_operator import reasons
from swarmgame_operator.defaults import Defaults
from swarmgame_operator.observed import Observed
from swarmgame_operator.plan import storage
from swarmgame_operator.plan.acceptance import acceptance, unreadable
from swarmgame_operator.plan.children import differing, superfluous, wanted
from swarmgame_operator.plan.completion import completion
from swarmgame_operator.plan.conditions import events, terminal, turned
from swarmgame_operator.plan.deadlines import deadline_passed, seconds_to_deadline, seconds_to_live
from swarmgame_operator.plan.degradation import degradation
from swarmgame_operator.plan.failure import failure
from swarmgame_operator.plan.identity import keys
from swarmgame_operator.plan.outcome import Plan
from swarmgame_operator.plan.peer_health import SHOWN, peer_counts, unhealthy_peers
from swarmgame_operator.plan.peer_job import JOB, template_hash
from swarmgame_operator.plan.progress import checkpoint, progress, progressing, seconds_to_stall
from swarmgame_operator.plan.readiness import readiness
from swarmgame_operator.plan.registration import registration
from swarmgame_operator.plan.rollout import initializer_step, peers_step
from swarmgame_operator.plan.scene import Scene, write_time
from swarmgame_operator.plan.services import DEV_CHAIN_ID, contract, public_address
from swarmgame_operator.plan.setting import Setting
from swarmgame_operator.plan.suspension import by_author, suspension
from swarmgame_operator.reasons import Verdict


def plan(game: GameResource, observed: Observed, defaults: Defaults) -> Plan:
    """What the cluster should hold for this game, and what its status should say. Pure: same input, same output, no
    clock but `observed.now`.
    """
    if game.deleted is not None:
        return Plan(game.status)  # owner references do the rest
    if game.managed_by != MANAGER:
        return _left_alone(game, observed)
    if game.game is None:
        return _said(game, observed, unreadable(game.problems))
    setting = Setting(game, game.game, defaults, observed.bootnode_peer)
    return _planned(Scene(setting, observed, game.status))


def _left_alone(game: GameResource, observed: Observed) -> Plan:
    """Another controller's game: it is told so once, as long as nobody else has said anything."""
    if game.status.conditions:
        return Plan(game.status)
    return _said(game, observed, reasons.managed_externally(game.managed_by))


def _said(game: GameResource, observed: Observed, verdict: Verdict) -> Plan:
    """One verdict, and nothing done: what runs already goes on."""
    conditions = turned(game.status, [verdict], observed.now, game.generation)
    status = game.status.model_copy(update={"observed_generation": game.generation, "conditions": conditions})
    return Plan(status, events=events(game.status, conditions))


def _planned(scene: Scene) -> Plan:
    setting, observed, before = scene.setting, scene.observed, scene.before
    accepted, suspended = acceptance(scene), suspension(scene)
    registered = registration(scene)
    end = (
        None if terminal(before) else completion(scene) or failure(scene) or deadline_passed(scene, accepted, suspended)
    )
    over = end is not None or terminal(before) is not None
    playing = not over and not by_author(suspended)

    peers = peers_step(scene, accepted=accepted.is_true, playing=playing, over=over)
    filling = initializer_step(scene, accepted=accepted.is_true, playing=playing)
    asked = wanted(setting, running=playing, over=over)
    secrets = keys(setting, observed.secrets, observed.children) if accepted.is_true and not over else ()
    # The bootnode's id is in what others are told, so it comes before them.
    named = bool(observed.bootnode_peer) or not setting.has_bootnode
    allowed = over or (accepted.is_true and named and not any(each.missing for each in secrets))
    children = differing(asked, observed.children, only_existing=over) if allowed else ()
    deletions = superfluous(asked, observed.children) if allowed else ()
    claims = tuple(
        each for each in storage.claims_to_delete(setting, over=over) if (each.kind, each.name) in observed.children
    )

    last = end or terminal(before)
    ready = readiness(scene, accepted, registered, suspended, end=last.type if last else "")
    complete = last is not None and last.type == "Complete"
    advance = progress(scene, ready=ready.is_true, complete=complete)
    verdicts = [
        accepted,
        registered,
        ready,
        progressing(scene, accepted, suspended, advance, over=over, rolling=peers.rolling),
        degradation(scene, suspended, over=over),
        suspended,
        *([end] if end is not None else []),
    ]
    conditions = turned(before, verdicts, observed.now, setting.resource.generation)
    admitted = accepted.is_true and not suspended.is_true
    now = write_time(observed.now)
    status = before.model_copy(
        update={
            "observed_generation": setting.resource.generation,
            "start_time": before.start_time or (now if admitted else None),
            "completion_time": before.completion_time or (now if over else None),
            "selector": ",".join(f"{key}={text}" for key, text in sorted(setting.selector("peer").items())),
            "replicas": len(scene.active_pods),
            "peers": peer_counts(scene),
            "bootnode": BootnodeStatus(
                ready=setting.has_bootnode and scene.bootnode_ready, address=public_address(setting, observed)
            ),
            "unhealthy_peers": () if over else unhealthy_peers(scene)[:SHOWN],
            "progress": advance,
            "coordination": _coordination(scene),
            "checkpoint": checkpoint(scene),
            "job_name": setting.name(JOB),
            "template_hash": scene.job.template_hash
            if scene.job is not None and scene.job.template_hash
            else template_hash(setting),
            "conditions": conditions,
        }
    )
    after = Scene(setting, observed, status)
    to_live = seconds_to_live(after) if over else None
    again = 0.0 if secrets or peers.dry_run is not None else _next_look(after, accepted, suspended, to_live, over=over)
    return Plan(
        status,
        keys=secrets,
        children=(*children, *filling.children, *peers.children),
        deletions=(*peers.deletions, *filling.deletions, *deletions, *claims),
        dry_run=peers.dry_run,
        delete_game=to_live is not None and to_live <= 0,
        events=events(before, conditions),
        requeue_after=again,
    )


def _coordination(scene: Scene) -> CoordinationStatus | None:
    if not scene.setting.has_chain:
        return None
    chain, before = scene.observed.chain, scene.before.coordination
    last = before or CoordinationStatus()
    return CoordinationStatus(
        contract_address=contract(scene.setting),
        chain_id=scene.spec.coordination.chain_id or DEV_CHAIN_ID,
        round=max(0, chain.round) if chain is not None else last.round,
        last_observed_block=chain.last_block if chain is not None else last.last_observed_block,
    )


def _next_look(
    scene: Scene, accepted: Verdict, suspended: Verdict, to_live: float | None, *, over: bool
) -> float | None:
    """Seconds until time alone may change the plan."""
    if over:
        return None if to_live is None else max(0.0, to_live)
    waits = [seconds_to_deadline(scene, accepted, suspended)]
    if not suspended.is_true:
        waits.append(seconds_to_stall(scene, scene.before.progress))
    return min((each for each in waits if each is not None), default=None)
