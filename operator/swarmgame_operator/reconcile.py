"""Reconciling: bring one game to its desired state.

Takes a snapshot, plans, carries the plan out, and plans again with the API server's answers until nothing is left to
write, or something is refused. Then it writes one status patch, if anything in the status changed, and publishes the
events; only then is tried again what was refused. A change of counts alone waits a second for others. All decisions are
in the plan. A game in its desired state causes no writes. The memo holds only what can be found out again, so an
operator that is killed at any point continues from what the cluster holds.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import replace
from datetime import UTC, datetime

from swarmgame_api.resource import GameResource, status_document
from swarmgame_common.logs import get_logger
from swarmgame_operator.api import CLAIM, KINDS, SECRET, Api
from swarmgame_operator.apply import Applier
from swarmgame_operator.attempt import LONGEST_PAUSE, NO_OBJECTS, Attempt, ReconcileMemo
from swarmgame_operator.cache import ClusterCache, Key
from swarmgame_operator.defaults import Defaults
from swarmgame_operator.errors import Invalid, OperatorError, Retry
from swarmgame_operator.events import Events
from swarmgame_operator.plan import (
    Child,
    Deletion,
    DryRun,
    KeySecret,
    Plan,
    build_plan,
    plan_of_failure,
    plan_of_unserved,
    references,
)
from swarmgame_operator.plan.key_secrets import peer_key
from swarmgame_operator.plan.obstacles import LASTING
from swarmgame_operator.plan.storage import BOOTNODE_KEY
from swarmgame_operator.queue import Turns
from swarmgame_operator.secrets import ReferencedObjects, Secrets
from swarmgame_operator.snapshot import Observed
from swarmgame_operator.status_poller import StatusPoller

log = get_logger(__name__)

MAX_PLANS = 8
"""Plans in one reconciliation. A new game takes five (keys, children, dry run, Job, and one with nothing left to do);
the limit turns a plan that never settles into a back-off.
"""
REFERENCES_SECONDS = 30.0
"""How long the objects that a game refers to are cached; if one was missing, they are read at every reconciliation."""
MISSING_SECONDS = 5.0
DIAGNOSES_SHARE = 0.05
DIAGNOSES_RESERVE = 2.0
"""Of the time, and in seconds: reading events. The API server has no index of them, and goes through all of a namespace
for each answer: when it is slow, many games seem not to start, and reading why would make it slower.
"""
STAGES: tuple[tuple[str, ...], ...] = ((), ("Deployment", "StatefulSet"), ("Job",))
"""The kinds that are written after all others, in this order."""


class Reconciler:
    """Reconciles games.

    Args:
        version: of the cluster.
        now: the clock of plans.
    """

    def __init__(
        self,
        api: Api,
        cache: ClusterCache,
        poller: StatusPoller,
        defaults: Defaults,
        events: Events,
        *,
        version: tuple[int, int],
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._cache, self._poller, self._defaults, self._version, self._now = cache, poller, defaults, version, now
        self._applier, self._secrets, self._events = Applier(api, cache), Secrets(api, cache), events
        self._memos: dict[Key, ReconcileMemo] = {}
        self._turns: Turns[Key] = Turns(DIAGNOSES_SHARE, DIAGNOSES_RESERVE, LONGEST_PAUSE / 2)

    async def reconcile(self, key: Key) -> float | None:
        """Bring a game to its desired state. Return the seconds until time alone may change its plan; None: never.

        Raises:
            Retry: it could not be finished now.
        """
        record = self._cache.game(key)
        if record is None:
            self._memos.pop(key, None)
            self._turns.leave(key)
            self._poller.forget(key)
            return None
        body = record.body
        game = GameResource.parse(body)
        memo = self._memos.get(key)
        if memo is None or memo.uid != game.uid:
            memo = self._memos[key] = ReconcileMemo(game.uid)
            self._poller.forget(key)

        if await self._release_terminating_namespace(key):
            return None
        attempt = Attempt(game, memo, self._now(), body.get("status") or {})
        for _ in range(MAX_PLANS):
            try:
                observed = await self._observe(key, game, memo)
            except OperatorError as error:
                if error.status in LASTING:
                    await self._report(plan_of_unserved(attempt.game, self._now(), "", error.message), attempt)
                raise
            try:
                plan = self._plan(key, attempt.game, observed)
            except Exception as error:
                await self._report_failed_plan(attempt, error)
                raise Retry(None, "PlanFailed", "its plan fails; the log has the first of these errors") from error
            memo.plan_error = ""
            if attempt.errors:
                break  # this plan's status has what was refused
            if not await self._carry_out(plan, attempt):
                break
        else:
            log.error("plans do not settle", key=key, children=[(each.kind, each.name) for each in plan.children])
            attempt.errors.append(Invalid("PlansDoNotSettle", f"{MAX_PLANS} plans in a row had something to do"))
        if plan.delete_game:
            await self._applier.delete_game(game)
            return None
        counts = await self._report(plan, attempt, at_once=bool(attempt.errors))
        if attempt.errors:
            raise Retry(attempt.pause, attempt.errors[0].reason, attempt.errors[0].message)
        again = plan.requeue_after if attempt.wait is None else attempt.wait
        waits = [again, counts, MISSING_SECONDS if memo.lacks_objects else None]
        return min((each for each in waits if each is not None), default=None)

    async def _report_failed_plan(self, attempt: Attempt, error: Exception) -> None:
        """Say in the game's status that it cannot be planned, and log the error unless it was logged before. The net
        under mistakes in a plan: only this game waits, and its author sees why.
        """
        text = f"{type(error).__name__}: {error}"
        if attempt.memo.plan_error != text:
            attempt.memo.plan_error = text
            log.error("plan failed", key=attempt.game.key, exc_info=error)
        await self._report(plan_of_failure(attempt.game, self._now(), error), attempt)

    async def report_unserved(self, key: Key, kind: str, error: str) -> None:
        """Say in the game's status that its namespace is not served. Nothing else is written: what a watch has not
        delivered may be the game's deletion.
        """
        record = self._cache.game(key)
        if record is None or not error:
            return
        game = GameResource.parse(record.body)
        attempt = Attempt(game, ReconcileMemo(game.uid), self._now(), record.body.get("status") or {})
        await self._report(plan_of_unserved(game, self._now(), kind, error), attempt)

    async def _release_terminating_namespace(self, key: Key) -> bool:
        """Delete the peers' Job if its namespace is terminating. Return whether it was deleted.

        A namespace deletes its pods first. A Job with `backoffLimitPerIndex` keeps its finalizer on a failed pod until
        the replacement pod is created, which a terminating namespace forbids: without this deletion, both stay forever
        (Kubernetes 1.36).
        """
        pods = (each.facts for each in self._cache.pods(key, "peer"))
        if not any(pod.terminating and pod.phase in ("Failed", "Succeeded") for pod in pods):
            return False
        job = self._cache.snapshot(key, self._now()).job
        if job is None or job.deleting or not await self._applier.namespace_is_terminating(key[0]):
            return False
        await self._applier.delete(key, Deletion("Job", job.name, uid=job.uid))
        return True

    def _plan(self, key: Key, game: GameResource, observed: Observed) -> Plan:
        """Return the plan, which has compared the children whose drift was unknown."""
        plan = build_plan(game, observed, self._defaults)
        writes = {(each.kind, each.name) for each in plan.children} | {("Secret", each.name) for each in plan.keys}
        self._cache.mark_in_sync(key, self._cache.drift_unknown(key) - writes)
        for child in plan.children:
            if child.drifted:
                log.info("drifted", key=key, kind=child.kind, name=child.name, fields=child.drifted[:5])
        return plan

    def _is_held(self, child: Child, attempt: Attempt) -> bool:
        """Return whether a new object with pods has to wait, because something that they need was refused."""
        known = self._cache.version_of(attempt.game.key, KINDS[child.kind], child.name)
        return _stage(child) != STAGES[0] and attempt.holds and not known

    def _holds(self, key: Key, child: Child) -> bool:
        """Return whether pods must not start if this write is refused. A claim that cannot grow is still mounted."""
        return child.kind != CLAIM.name or not self._cache.version_of(key, CLAIM, child.name)

    async def _report(self, plan: Plan, attempt: Attempt, *, at_once: bool = True) -> float | None:
        """Write the status if it has changed, and publish the events. Return None; or the seconds after which to
        reconcile again, as only counts have changed, and may wait.
        """
        game, after = attempt.game, status_document(plan.status)
        if not at_once and (wait := attempt.memo.wait_of_counts(attempt.written, after)):
            return wait
        attempt.memo.counts_changed = None
        if await self._applier.status(game, attempt.written, after):
            for event in plan.events:
                self._events.publish(game, event)
        attempt.written = after
        attempt.game = replace(game, status=plan.status)
        return None

    async def _carry_out(self, plan: Plan, attempt: Attempt) -> bool:
        """Carry out everything but the status. Return whether the next plan may differ."""
        game, memo, key = attempt.game, attempt.memo, attempt.game.key
        if plan.keys:  # retained keys have no owner: those of a deleted game would stay forever
            await self._applier.require_existing(game)
        before = dict(memo.refusals)
        await _all(attempt.make("Secret", keys.name, self._ensure_keys(key, keys, attempt)) for keys in plan.keys)
        await self._write(plan, attempt)
        for deletion in plan.deletions:
            if (deletion.kind, deletion.name) not in attempt.deleted:
                if deletion.kind == "Job":  # what stops peers is said before it happens
                    await self._report(plan, attempt)
                attempt.deleted.add((deletion.kind, deletion.name))
                await attempt.make(deletion.kind, deletion.name, self._applier.delete(key, deletion))
        if plan.dry_run is not None and not attempt.errors:
            await attempt.make("Job", f"{key[1]}-peers", self._dry_run(key, plan.dry_run, memo))
        read = await self._diagnose(plan, attempt)
        attempt.forget_others()
        return bool(
            plan.keys
            or plan.children
            or plan.dry_run is not None
            or read
            or attempt.errors
            or before.keys() != memo.refusals.keys()
        )

    async def _write(self, plan: Plan, attempt: Attempt) -> None:
        """Write the children. Pods come after everything that they mount and that isolates them, and not without it."""
        game, key = attempt.game, attempt.game.key
        # Names are looked up at once, and not stage by stage: a slow API server makes each step seconds.
        looked_up = {
            (child.kind, child.name): asyncio.ensure_future(self._applier.look_up(key, child, game.uid))
            for child in plan.children
        }
        try:
            for kinds in STAGES:
                await _all(
                    attempt.make(
                        child.kind,
                        child.name,
                        self._applier.child(key, child, game.uid, looked_up[child.kind, child.name]),
                        self._holds(key, child),
                    )
                    for child in plan.children
                    if _stage(child) == kinds and not self._is_held(child, attempt)
                )
        finally:
            for task in looked_up.values():
                task.cancel()
            await asyncio.gather(*looked_up.values(), return_exceptions=True)

    async def _diagnose(self, plan: Plan, attempt: Attempt) -> bool:
        """Read the events that a plan asks for when it is the game's turn. Return whether they were read."""
        key, memo, loop = attempt.game.key, attempt.memo, asyncio.get_running_loop()
        memo.forget_diagnoses(attempt.now)
        attempt.wait = None
        if not plan.diagnose:
            self._turns.leave(key)
            return False
        began = loop.time()
        if wait := self._turns.take(key, began):
            attempt.wait = wait
            return False
        try:
            for subject in plan.diagnose:
                memo.diagnoses[subject.kind, subject.name] = await self._applier.diagnose(key, subject, self._now())
        finally:
            self._turns.took(loop.time() - began)
        return True

    async def _ensure_keys(self, key: Key, keys: KeySecret, attempt: Attempt) -> None:
        if made := await self._secrets.ensure(key, keys, attempt.game.uid):
            attempt.memo.made[keys.name] = made

    async def _dry_run(self, key: Key, request: DryRun, memo: ReconcileMemo) -> None:
        memo.dry_run = await self._applier.dry_run(key, request)

    async def _observe(self, key: Key, game: GameResource, memo: ReconcileMemo) -> Observed:
        found = await self._references(key, game, memo)
        bootnode_peer = await self._bootnode_peer(key, memo)
        peer_ids = await self._peer_ids(key, game, memo)
        progress, chain = self._poller.of(key)
        # Nothing is awaited from here to the end of the plan, so the children are marked in sync as they were planned.
        snapshot = self._cache.snapshot(key, self._now())
        secret = f"{key[1]}-bootnode-key"
        read = memo.bootnode[0] == self._cache.version_of(key, SECRET, secret)
        has_key = BOOTNODE_KEY in snapshot.secrets.get(secret, ())
        return replace(
            snapshot,
            cluster_version=self._version,
            secrets={**found.secrets, **snapshot.secrets},
            config_maps=found.config_maps,
            claims=found.claims,
            bootnode_peer=bootnode_peer,
            bootnode_key_unusable=read and has_key and not bootnode_peer,
            peer_ids=peer_ids,
            progress=progress,
            chain=chain,
            poll=self._poller.facts(key),
            dry_run=memo.dry_run,
            refusals=tuple(memo.refusals.values()),
            diagnoses=dict(memo.diagnoses),
        )

    async def _references(self, key: Key, game: GameResource, memo: ReconcileMemo) -> ReferencedObjects:
        if game.game is None:
            return NO_OBJECTS
        required = references(game.game, self._defaults)
        if not (required.secrets or required.config_maps or required.claims):
            memo.required, memo.found = required, NO_OBJECTS
            return NO_OBJECTS
        now = asyncio.get_running_loop().time()
        if required != memo.required or memo.lacks_objects or now - memo.read > REFERENCES_SECONDS:
            memo.found = await self._secrets.resolve_references(key[0], required)
            memo.required, memo.read = required, now
        return memo.found

    async def _bootnode_peer(self, key: Key, memo: ReconcileMemo) -> str:
        secret = f"{key[1]}-bootnode-key"
        version = self._cache.version_of(key, SECRET, secret)
        if version != memo.bootnode[0]:
            found = await self._ids(key, secret, version, [BOOTNODE_KEY], memo)
            memo.bootnode = (version, next(iter(found), ""))
        return memo.bootnode[1]

    async def _peer_ids(self, key: Key, game: GameResource, memo: ReconcileMemo) -> tuple[str, ...]:
        """Return the ids of the game's own peers; none of a closed swarm, which no other peer can join."""
        if game.game is None or game.game.spec.communication.backend == "TorchDistributed":
            return ()
        spec = game.game.spec
        named = spec.identity.secret_name
        secret = named or f"{key[1]}-peer-keys"
        # A Secret that the game names is not watched: it is read as often as the other objects that it refers to.
        version = f"read/{memo.read}" if named else self._cache.version_of(key, SECRET, secret)
        if (version, spec.peers.replicas) != memo.peers[0]:
            names = [peer_key(index) for index in range(spec.peers.replicas)]
            found = await self._ids(key, secret, version, names, memo)
            memo.peers = (version, spec.peers.replicas), found
        return memo.peers[1]

    async def _ids(
        self, key: Key, secret: str, version: str, names: Sequence[str], memo: ReconcileMemo
    ) -> tuple[str, ...]:
        """Return the peer ids of these keys of a Secret; none of one that does not exist."""
        if not version:
            return ()
        made = memo.made.pop(secret, None)
        if made is not None and made.version == version and all(name in made.peer_ids for name in names):
            return tuple(made.peer_ids[name] for name in names)
        return await self._secrets.peer_ids(key[0], secret, names)


def _stage(child: Child) -> tuple[str, ...]:
    return next((kinds for kinds in STAGES if child.kind in kinds), STAGES[0])


async def _all(requests: Iterable[Awaitable[None]]) -> None:
    """Make requests concurrently, wait for all of them, and raise the first error. No request outlives its
    reconciliation.
    """
    for result in await asyncio.gather(*requests, return_exceptions=True):
        if isinstance(result, BaseException):
            raise result
