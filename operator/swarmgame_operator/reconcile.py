"""Reconciling: bring one game to its desired state.

Takes a snapshot, plans, carries the plan out, and plans again with the API server's answers until nothing is left to
write. Then it writes one status patch, if anything in the status changed, and publishes the events. All decisions are
in the plan. A game in its desired state causes no writes. The memo holds only what can be found out again, so an
operator that is killed at any point continues from what the cluster holds.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from swarmgame_api.resource import GameResource
from swarmgame_common.logs import get_logger
from swarmgame_operator.api import SECRET, Api
from swarmgame_operator.apply import Applier
from swarmgame_operator.cache import ClusterCache, Key
from swarmgame_operator.defaults import Defaults
from swarmgame_operator.errors import Invalid, Retry
from swarmgame_operator.events import Events
from swarmgame_operator.plan import Child, Deletion, Plan, References, build_plan, references
from swarmgame_operator.secrets import ReferencedObjects, Secrets
from swarmgame_operator.snapshot import DryRunFacts, Observed
from swarmgame_operator.status_poller import StatusPoller

log = get_logger(__name__)

MAX_PLANS = 8
"""Plans in one reconciliation. A new game takes five (keys, children, dry run, Job, and one with nothing left to do);
the limit turns a plan that never settles into a back-off.
"""
REFERENCES_SECONDS = 30.0
"""How long the objects that a game refers to are cached; if one was missing, they are read at every reconciliation."""
MISSING_SECONDS = 5.0
_NO_OBJECTS = ReferencedObjects({}, {}, frozenset())


@dataclass(slots=True)
class ReconcileMemo:
    """Answers about a game that are kept between reconciliations.

    Args:
        bootnode: version of the bootnode's key Secret, and its peer id.
        required, found: what the game refers to, and what of it existed at the time `read`.
    """

    uid: str
    dry_run: DryRunFacts | None = None
    bootnode: tuple[str, str] = ("", "")
    required: References | None = None
    found: ReferencedObjects = _NO_OBJECTS
    read: float = 0.0

    @property
    def lacks_objects(self) -> bool:
        """Whether an object that the game refers to is missing, or one of its keys."""
        if self.required is None:
            return False
        pairs = ((self.required.secrets, self.found.secrets), (self.required.config_maps, self.found.config_maps))
        return not self.required.claims <= self.found.claims or any(
            name not in found or not keys <= found[name] for required, found in pairs for name, keys in required.items()
        )


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

    async def reconcile(self, key: Key) -> float | None:
        """Bring a game to its desired state. Return the seconds until time alone may change its plan; None: never.

        Raises:
            Retry: it could not be finished now.
        """
        record = self._cache.game(key)
        if record is None:
            self._memos.pop(key, None)
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
        deleted: set[tuple[str, str]] = set()
        refused: list[Invalid] = []
        for _ in range(MAX_PLANS):
            plan = self._plan(key, game, await self._observe(key, game, memo))
            wrote = await self._carry_out(game, plan, memo, deleted, refused)
            if not wrote or refused:
                break
        else:
            log.error("plans do not settle", key=key, children=[(each.kind, each.name) for each in plan.children])
            refused.append(Invalid("PlansDoNotSettle", f"{MAX_PLANS} plans in a row had something to do"))
        if plan.delete_game:
            await self._applier.delete_game(game)
            return None
        if await self._applier.status(game, body.get("status") or {}, plan.status):
            for event in plan.events:
                self._events.publish(game, event)
        if refused:
            raise Retry(None, refused[0].reason, refused[0].message)
        waits = [plan.requeue_after, MISSING_SECONDS if memo.lacks_objects else None]
        return min((each for each in waits if each is not None), default=None)

    async def _release_terminating_namespace(self, key: Key) -> bool:
        """Delete the peers' Job if its namespace is terminating. Return whether it was deleted.

        A namespace deletes its pods first. A Job with `backoffLimitPerIndex` keeps its finalizer on a failed pod until
        the replacement pod is created, which a terminating namespace forbids: without this deletion, both stay forever
        (Kubernetes 1.36).
        """
        snapshot = self._cache.snapshot(key, self._now())
        job = snapshot.job
        stuck = any(
            pod.role == "peer" and pod.terminating and pod.phase in ("Failed", "Succeeded") for pod in snapshot.pods
        )
        if job is None or job.deleting or not stuck or not await self._applier.namespace_is_terminating(key[0]):
            return False
        await self._applier.delete(key, Deletion("Job", f"{key[1]}-peers"))
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

    async def _carry_out(
        self,
        game: GameResource,
        plan: Plan,
        memo: ReconcileMemo,
        deleted: set[tuple[str, str]],
        refused: list[Invalid],
    ) -> bool:
        """Carry out everything but the status. Return whether the next plan may differ."""
        key = game.key
        if plan.keys:  # retained keys have no owner: those of a deleted game would stay forever
            await self._applier.require_existing(game)
        await _all(self._secrets.ensure(key, keys) for keys in plan.keys)
        jobs = [child for child in plan.children if child.kind == "Job"]
        await _all(self._child(key, child, refused) for child in plan.children if child not in jobs)
        await _all(self._child(key, child, refused) for child in jobs)  # after everything that their pods mount
        for deletion in plan.deletions:
            if (deletion.kind, deletion.name) not in deleted:
                deleted.add((deletion.kind, deletion.name))
                await self._applier.delete(key, deletion)
        if plan.dry_run is not None:
            memo.dry_run = await self._applier.dry_run(key, plan.dry_run)
        return bool(plan.keys or plan.children or plan.dry_run is not None)

    async def _child(self, key: Key, child: Child, refused: list[Invalid]) -> None:
        try:
            await self._applier.child(key, child)
        except Invalid as error:  # the other children are still written
            log.error("refused", key=key, kind=child.kind, name=child.name, reason=error.reason, message=error.message)
            refused.append(error)

    async def _observe(self, key: Key, game: GameResource, memo: ReconcileMemo) -> Observed:
        found = await self._references(key, game, memo)
        bootnode_peer = await self._bootnode_peer(key, memo)
        progress, chain = self._poller.of(key)
        # Nothing is awaited from here to the end of the plan, so the children are marked in sync as they were planned.
        snapshot = self._cache.snapshot(key, self._now())
        return replace(
            snapshot,
            cluster_version=self._version,
            secrets={**found.secrets, **snapshot.secrets},
            config_maps=found.config_maps,
            claims=found.claims,
            bootnode_peer=bootnode_peer,
            progress=progress,
            chain=chain,
            dry_run=memo.dry_run,
        )

    async def _references(self, key: Key, game: GameResource, memo: ReconcileMemo) -> ReferencedObjects:
        if game.game is None:
            return _NO_OBJECTS
        required = references(game.game)
        if not (required.secrets or required.config_maps or required.claims):
            memo.required, memo.found = required, _NO_OBJECTS
            return _NO_OBJECTS
        now = asyncio.get_running_loop().time()
        if required != memo.required or memo.lacks_objects or now - memo.read > REFERENCES_SECONDS:
            memo.found = await self._secrets.resolve_references(key[0], required)
            memo.required, memo.read = required, now
        return memo.found

    async def _bootnode_peer(self, key: Key, memo: ReconcileMemo) -> str:
        version = self._cache.version_of(key, SECRET, f"{key[1]}-bootnode-key")
        if version != memo.bootnode[0]:
            memo.bootnode = (version, await self._secrets.bootnode_peer(key) if version else "")
        return memo.bootnode[1]


async def _all(requests: Iterable[Awaitable[None]]) -> None:
    """Make requests concurrently, wait for all of them, and raise the first error. No request outlives its
    reconciliation.
    """
    for result in await asyncio.gather(*requests, return_exceptions=True):
        if isinstance(result, BaseException):
            raise result
