"""Leader election in virtual time: one leads, the next takes over in time, and a leader that is cut off stops first."""

from __future__ import annotations

import asyncio
import copy
import itertools
from collections.abc import Coroutine
from typing import Any

import looptime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from swarmgame_operator.api import Api
from swarmgame_operator.errors import LeadershipLost, Retry
from swarmgame_operator.leader import Leader

SECONDS = 15


def virtually(coroutine: Coroutine[Any, Any, Any]) -> Any:
    """Run a coroutine on a loop with virtual time."""
    loop = looptime.patch_event_loop(asyncio.new_event_loop(), start=0.0)
    try:
        return loop.run_until_complete(coroutine)
    finally:
        loop.close()


class OneLease(Api):
    """A connection to an API server with one Lease and optimistic locking. `away`: it answers 503.
    `delay`: seconds from a write to its answer.

    Args:
        server: another connection to the same server.
    """

    def __init__(self, server: OneLease | None = None) -> None:
        super().__init__(None)
        self.store: list[dict[str, Any]] = [] if server is None else server.store
        self.versions = itertools.count(1) if server is None else server.versions
        self.away = False
        self.requests = 0
        self.delay = 0.0

    async def _answer(self) -> None:
        self.requests += 1
        if self.away:
            raise Retry(None, "ServiceUnavailable", "away", status=503)

    async def _late(self) -> None:
        """Wait after the server has done what was asked for."""
        await asyncio.sleep(self.delay)

    async def get(self, kind: Any, namespace: Any, name: str) -> Any:
        await self._answer()
        return copy.deepcopy(self.store[0]) if self.store else None

    async def create(self, kind: Any, namespace: Any, body: Any, *, dry_run: bool = False) -> Any:
        await self._answer()
        if self.store:
            raise Retry(None, "AlreadyExists", status=409)
        self.store.append({**body, "metadata": {**body["metadata"], "resourceVersion": str(next(self.versions))}})
        await self._late()
        return self.store[0]

    async def replace(self, kind: Any, namespace: Any, body: Any) -> Any:
        await self._answer()
        version = self.store[0]["metadata"]["resourceVersion"]
        if body["metadata"]["resourceVersion"] != version:
            raise Retry(None, "Conflict", status=409)
        self.store[0] = {**body, "metadata": {**body["metadata"], "resourceVersion": str(next(self.versions))}}
        await self._late()
        return self.store[0]


def candidate(api: Api, identity: str) -> Leader:
    return Leader(api, namespace="n", name="operator", identity=identity, seconds=SECONDS)


@settings(max_examples=40, deadline=None)
@given(killed_after=st.floats(0.0, 40.0))
def test_the_other_leads_at_most_two_seconds_after_the_lease_of_a_killed_leader(killed_after: float) -> None:
    async def scenario() -> float:
        api, loop = OneLease(), asyncio.get_running_loop()
        first, second = candidate(api, "first"), candidate(api, "second")
        await first.acquire()
        holding = asyncio.create_task(first.hold())
        waiting = asyncio.create_task(second.acquire())
        await asyncio.sleep(killed_after)
        assert not second.leads
        holding.cancel()
        killed = loop.time()
        await waiting
        return loop.time() - killed

    assert virtually(scenario()) <= SECONDS + 2


def test_a_released_lease_is_taken_within_two_seconds() -> None:
    async def scenario() -> float:
        api = OneLease()
        first, second = candidate(api, "first"), candidate(api, "second")
        await first.acquire()
        waiting = asyncio.create_task(second.acquire())
        await asyncio.sleep(20.5)
        began = asyncio.get_running_loop().time()
        await first.release()
        await waiting
        return asyncio.get_running_loop().time() - began

    assert virtually(scenario()) <= 2


@settings(max_examples=40, deadline=None)
@given(away_after=st.floats(0.0, 20.0))
def test_a_leader_that_is_cut_off_stops_before_the_other_may_lead(away_after: float) -> None:
    async def scenario() -> tuple[float, float]:
        loop, cut_off = asyncio.get_running_loop(), OneLease()
        first, second = candidate(cut_off, "first"), candidate(OneLease(cut_off), "second")
        await first.acquire()
        waiting = asyncio.create_task(second.acquire())
        holding = asyncio.create_task(first.hold())
        await asyncio.sleep(away_after)
        cut_off.away = True
        with pytest.raises(LeadershipLost):
            await holding
        stopped = loop.time()
        await waiting
        return stopped, loop.time()

    stopped, taken = virtually(scenario())
    assert stopped < taken


def test_a_candidate_asks_about_once_a_second_and_not_more_while_the_api_server_is_away() -> None:
    async def scenario() -> int:
        api = OneLease()
        await candidate(api, "first").acquire()
        api.requests = 0
        waiting = asyncio.create_task(candidate(api, "second").acquire())
        await asyncio.sleep(5)
        api.away = True
        await asyncio.sleep(55)
        waiting.cancel()
        return api.requests

    assert 45 <= virtually(scenario()) <= 62


@settings(max_examples=40, deadline=None)
@given(delay=st.floats(0.0, 29.0))
def test_an_operator_that_acquires_slowly_never_leads_beside_another(delay: float) -> None:
    """The answer to the write that made the Lease its own may arrive when the Lease has expired for the others."""

    async def scenario() -> tuple[float, float]:
        loop, slow = asyncio.get_running_loop(), OneLease()
        slow.delay = delay
        first, second = candidate(slow, "first"), candidate(OneLease(slow), "second")
        led: list[float] = []

        async def lead() -> None:
            await first.acquire()
            slow.away = True  # from now on it is cut off
            try:
                await first.hold()
            except LeadershipLost:
                led.append(loop.time())

        leading = asyncio.create_task(lead())
        await asyncio.sleep(0)
        await asyncio.sleep(0.001)
        async with asyncio.timeout(300):
            await second.acquire()
        taken = loop.time()
        leading.cancel()
        await asyncio.gather(leading, return_exceptions=True)
        return (led[0] if led else 0.0) if not first.leads else 1e9, taken

    stopped, taken = virtually(scenario())
    assert stopped < taken


@settings(max_examples=20, deadline=None)
@given(deleted_after=st.floats(0.0, 20.0))
def test_a_leader_stops_at_its_next_renewal_after_another_has_taken_the_lease(deleted_after: float) -> None:
    """Such as after someone deleted the Lease."""

    async def scenario() -> tuple[float, bool]:
        api, loop = OneLease(), asyncio.get_running_loop()
        first, second = candidate(api, "first"), candidate(OneLease(api), "second")
        await first.acquire()
        holding = asyncio.create_task(first.hold())
        await asyncio.sleep(deleted_after)
        api.store.clear()
        await second.acquire()
        taken = loop.time()
        with pytest.raises(LeadershipLost, match="another operator's"):
            await holding
        return loop.time() - taken, first.leads

    seconds, leads = virtually(scenario())
    assert seconds <= SECONDS / 5 + 0.1
    assert not leads
