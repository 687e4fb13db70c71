"""Reconciling: one look at one game, until there is nothing left to do about it.

Observe, plan, carry out, and plan again with what the API server answered; then one status patch, if anything in it
changed, and its events. It decides nothing itself. Invariants: a look at a game that is as it should be writes nothing;
killed at any point, the next look goes on from what the cluster holds, because nothing that matters is kept here.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from swarmgame_api.resource import GameResource
from swarmgame_operator.api import SECRET, Api
from swarmgame_operator.apply import Applier
from swarmgame_operator.defaults import Defaults
from swarmgame_operator.errors import Invalid, Retry
from swarmgame_operator.events import Events
from swarmgame_operator.logs import log
from swarmgame_operator.observe import Cache, Key
from swarmgame_operator.observed import DryRunFacts, Observed
from swarmgame_operator.plan import Child, Plan, Reference, References, plan, references
from swarmgame_operator.progress import Progress
from swarmgame_operator.secrets import Found, Secrets

PASSES = 8
"""Plans in one look; each carries out the one before."""
REFERENCES_SECONDS = 30.0
"""How long what a game refers to is believed to be as it was; what was missing is looked up at every look."""
MISSING_SECONDS = 5.0
_NOTHING = Found({}, {}, frozenset())


@dataclass(slots=True)
class _Memory:
    """What was found out about a game and may be found out again at any time."""

    uid: str
    dry_run: DryRunFacts | None = None
    bootnode: tuple[str, str] = ("", "")
    wanted: References | None = None
    found: Found = _NOTHING
    looked: float = 0.0


class Reconciler:
    """Looks after games.

    Args:
        version: of the cluster.
        now: the clock of plans.
    """

    def __init__(
        self,
        api: Api,
        cache: Cache,
        progress: Progress,
        defaults: Defaults,
        *,
        version: tuple[int, int],
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._cache, self._progress, self._defaults, self._version, self._now = cache, progress, defaults, version, now
        self._applier, self._secrets, self._events = Applier(api, cache), Secrets(api, cache), Events(api)
        self._memory: dict[Key, _Memory] = {}

    async def look(self, key: Key) -> float | None:
        """Brings a game to what it should be. Returns the seconds after which time alone may ask for another look.

        Raises:
            Retry: it could not be finished now.
        """
        record = self._cache.game(key)
        if record is None:
            self._memory.pop(key, None)
            self._progress.forget(key)
            return None
        body = record.body
        game = GameResource.parse(body)
        memory = self._memory.get(key)
        if memory is None or memory.uid != game.uid:
            memory = self._memory[key] = _Memory(game.uid)
            self._progress.forget(key)

        if await self._let_go(key, memory):
            return None
        deleted: set[tuple[str, str]] = set()
        refused: list[Invalid] = []
        for _ in range(PASSES):
            found = self._plan(key, game, await self._observe(key, game, memory))
            wrote = await self._carry_out(key, found, memory, deleted, refused)
            if not wrote or refused:
                break
        else:
            log.error("plans do not settle", key=key, children=[(each.kind, each.name) for each in found.children])
            refused.append(Invalid("PlansDoNotSettle", f"{PASSES} plans in a row had something to do"))
        if found.delete_game:
            await self._applier.delete_game(game)
            return None
        if await self._applier.status(game, body.get("status") or {}, found.status):
            for event in found.events:
                await self._events.tell(game, event)
        if refused:
            raise Retry(None, refused[0].reason, refused[0].message)
        waits = [found.requeue_after, MISSING_SECONDS if _lacks(memory) else None]
        return min((each for each in waits if each is not None), default=None)

    async def _let_go(self, key: Key, memory: _Memory) -> bool:
        """Deletes the peers' Job of a namespace that is on its way out. Returns whether that is so.

        A namespace deletes its pods first. A Job with `backoffLimitPerIndex` keeps its finalizer on a failed pod until
        the pod that takes its place is made, which such a namespace forbids: without this, neither ever goes
        (Kubernetes 1.36).
        """
        observed = self._cache.observed(key, self._now(), memory.uid)
        job = observed.job
        stranded = any(
            pod.role == "peer" and pod.terminating and pod.phase in ("Failed", "Succeeded") for pod in observed.pods
        )
        if job is None or job.deleting or not stranded or not await self._applier.namespace_ends(key[0]):
            return False
        await self._applier.delete(key, Reference("Job", f"{key[1]}-peers"))
        return True

    async def _carry_out(
        self, key: Key, what: Plan, memory: _Memory, deleted: set[tuple[str, str]], refused: list[Invalid]
    ) -> bool:
        """Does all of it but the status. Returns whether the next plan may differ."""
        await _all(self._secrets.ensure(key, keys) for keys in what.keys)
        jobs = [child for child in what.children if child.kind == "Job"]
        await _all(self._child(key, child, refused) for child in what.children if child not in jobs)
        await _all(self._child(key, child, refused) for child in jobs)  # when all that their pods mount is there
        wrote = bool(what.keys or what.children)
        for reference in what.deletions:
            if (reference.kind, reference.name) not in deleted:
                deleted.add((reference.kind, reference.name))
                await self._applier.delete(key, reference)
        if what.dry_run is not None:
            memory.dry_run = await self._applier.ask(key, what.dry_run)
            wrote = True
        return wrote

    async def _child(self, key: Key, child: Child, refused: list[Invalid]) -> None:
        try:
            await self._applier.child(key, child)
        except Invalid as error:  # the others are not to blame
            log.error("refused", key=key, kind=child.kind, name=child.name, reason=error.reason, message=error.message)
            refused.append(error)

    def _plan(self, key: Key, game: GameResource, observed: Observed) -> Plan:
        """The plan, with drift decided: a child that has changed since it was last looked at is compared with what the
        plan would write.
        """
        found = plan(game, observed, self._defaults)
        unsure = self._cache.unsure(key)
        if not unsure:
            return found
        compared = set()
        for manifest in (*(each.manifest for each in found.children), *(each.secret for each in found.keys)):
            place = (manifest["kind"], manifest["metadata"]["name"])
            if place in unsure:
                compared.add(place)
                if missing := self._cache.check(key, manifest):
                    log.info("drifted", key=key, kind=place[0], name=place[1], fields=missing[:5])
        self._cache.trust(key, unsure - compared)
        again = self._cache.observed(key, observed.now, game.uid)
        return plan(game, replace(observed, children=again.children), self._defaults)

    async def _observe(self, key: Key, game: GameResource, memory: _Memory) -> Observed:
        observed = self._cache.observed(key, self._now(), game.uid)
        progress, chain = self._progress.of(key)
        found = await self._references(key, game, memory)
        return replace(
            observed,
            cluster_version=self._version,
            secrets={**found.secrets, **observed.secrets},
            config_maps=found.config_maps,
            claims=found.claims,
            bootnode_peer=await self._bootnode_peer(key, memory),
            progress=progress,
            chain=chain,
            dry_run=memory.dry_run,
        )

    async def _references(self, key: Key, game: GameResource, memory: _Memory) -> Found:
        if game.game is None:
            return _NOTHING
        wanted = references(game.game)
        if not (wanted.secrets or wanted.config_maps or wanted.claims):
            memory.wanted, memory.found = wanted, _NOTHING
            return _NOTHING
        now = asyncio.get_running_loop().time()
        if wanted != memory.wanted or _lacks(memory) or now - memory.looked > REFERENCES_SECONDS:
            memory.found = await self._secrets.look_up(key[0], wanted)
            memory.wanted, memory.looked = wanted, now
        return memory.found

    async def _bootnode_peer(self, key: Key, memory: _Memory) -> str:
        version = self._cache.version_of(key, SECRET, f"{key[1]}-bootnode-key")
        if version != memory.bootnode[0]:
            memory.bootnode = (version, await self._secrets.bootnode_peer(key) if version else "")
        return memory.bootnode[1]


async def _all(requests: Iterable[Awaitable[None]]) -> None:
    """Makes requests at the same time, and raises the first error when all of them have ended: none goes on behind its
    game's back.
    """
    for result in await asyncio.gather(*requests, return_exceptions=True):
        if isinstance(result, BaseException):
            raise result


def _lacks(memory: _Memory) -> bool:
    wanted, found = memory.wanted, memory.found
    if wanted is None:
        return False
    return (
        any(
            not keys <= found.secrets.get(name, frozenset()) or name not in found.secrets
            for name, keys in wanted.secrets.items()
        )
        or any(
            not keys <= found.config_maps.get(name, frozenset()) or name not in found.config_maps
            for name, keys in wanted.config_maps.items()
        )
        or not wanted.claims <= found.claims
    )
