"""An informer against a server that cuts watches, forgets history and refuses requests: the store still ends up equal
to the server's objects.
"""

from __future__ import annotations

import asyncio
import contextlib
import random

import pytest
from faulty_server import FaultyServer, serving
from operators import eventually

from swarmgame_operator import informer as module
from swarmgame_operator.api import POD
from swarmgame_operator.cache import ClusterCache
from swarmgame_operator.informer import Informer

GAME = ("n", "g")


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LONGEST_DELAY", 0.02)
    monkeypatch.setattr(module, "RECONNECT_SECONDS", 0.0)


class Watching:
    """A running informer of pods, and the content of its cache."""

    def __init__(self, informer: Informer, cache: ClusterCache) -> None:
        self.informer, self._cache = informer, cache

    @property
    def names(self) -> set[str]:
        return {pod.facts.name for pod in self._cache.pods(GAME, "")}


@contextlib.asynccontextmanager
async def watching(server: FaultyServer, page: int = 3):  # type: ignore[no-untyped-def]
    cache = ClusterCache(changed=lambda key: None)
    async with serving(server) as api:
        informer = Informer(api, POD, cache, page=page)
        task = asyncio.create_task(informer.run())
        yield Watching(informer, cache)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_a_list_is_read_page_by_page_and_then_followed() -> None:
    server = FaultyServer()
    for number in range(10):
        await server.change("ADDED", f"p{number}")
    async with watching(server) as seen:
        await seen.informer.synced.wait()
        assert len(seen.names) == 10
        assert server.lists == 4
        await server.change("DELETED", "p3")
        await server.change("ADDED", "p10")
        await eventually(lambda: seen.names == set(server.objects))
        assert seen.informer.lists == 1


async def test_a_watch_that_is_cut_in_the_middle_of_a_line_continues_without_a_list() -> None:
    server = FaultyServer()
    async with watching(server) as seen:
        await seen.informer.synced.wait()
        for number in range(20):
            await server.change("ADDED", f"p{number}")
            if number % 5 == 0:
                await eventually(lambda: server.watches)
                server.cut()
        await eventually(lambda: seen.names == set(server.objects))
        assert len(seen.names) == 20
        assert seen.informer.lists == 1


async def test_an_object_that_was_deleted_during_an_interruption_is_removed() -> None:
    server = FaultyServer()
    for number in range(10):
        await server.change("ADDED", f"p{number}")
    async with watching(server) as seen:
        await eventually(lambda: server.watches and len(seen.names) == 10)
        server.refusals = [503] * 3
        server.cut()
        for number in range(7):
            await server.change("DELETED", f"p{number}")
        server.forget()
        await eventually(lambda: seen.names == {"p7", "p8", "p9"})
        assert seen.informer.lists == 2


async def test_the_store_is_in_step_until_the_watch_breaks_and_again_when_what_was_missed_has_arrived() -> None:
    server = FaultyServer()
    async with watching(server) as seen:
        await seen.informer.synced.wait()
        await eventually(lambda: server.watches)
        server.refusals = [503] * 1000
        server.cut()
        await eventually(lambda: not seen.informer.synced.is_set())
        for number in range(5):
            await server.change("ADDED", f"p{number}")
        server.refusals.clear()
        await seen.informer.synced.wait()
        assert seen.names == set(server.objects)
        assert seen.informer.lists == 1


async def test_a_watch_that_is_too_old_is_out_of_step_until_the_next_list() -> None:
    server = FaultyServer()
    await server.change("ADDED", "p0")
    async with watching(server) as seen:
        await eventually(lambda: server.watches and seen.names == {"p0"})
        await server.change("DELETED", "p0")
        server.forget()
        server.refusals = [503] * 1000
        server.cut()
        await eventually(lambda: not seen.informer.synced.is_set())
        server.refusals.clear()
        await seen.informer.synced.wait()
        assert seen.names == set()
        assert seen.informer.lists == 2


async def test_a_watch_that_never_pauses_is_in_step_after_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CATCH_UP_SECONDS", 0.2)
    monkeypatch.setattr(module, "QUIET_SECONDS", 60.0)
    server = FaultyServer()
    async with watching(server) as seen:
        await eventually(lambda: server.watches)
        server.cut()
        await eventually(lambda: not seen.informer.synced.is_set())
        await eventually(lambda: server.watches)
        number = 0
        while not seen.informer.synced.is_set():
            number += 1
            await server.change("MODIFIED", "p0", status={"number": number})
            await asyncio.sleep(0)
        assert number > 1


@pytest.mark.parametrize("code", [429, 500, 503, 403, 401, 404, 410])
async def test_no_error_ends_an_informer(code: int) -> None:
    server = FaultyServer()
    await server.change("ADDED", "p0")
    server.refusals = [code] * 4
    async with watching(server) as seen:
        await eventually(lambda: seen.names == {"p0"})
        assert not server.refusals


@pytest.mark.parametrize("seed", range(8))
async def test_random_interruptions_lose_nothing_and_leave_nothing_over(seed: int) -> None:
    rng = random.Random(seed)
    server = FaultyServer()
    changes = 0
    async with watching(server, page=5) as seen:
        for _ in range(150):
            name = f"p{rng.randrange(25)}"
            there = name in server.objects
            event = rng.choice(["MODIFIED", "DELETED"]) if there else "ADDED"
            await server.change(event, name, status={"phase": rng.choice(["Pending", "Running"])})
            changes += 1
            draw = rng.random()
            if draw < 0.05:
                server.cut()
            elif draw < 0.08:
                server.forget()
                server.cut()
            elif draw < 0.12:
                server.refusals += rng.choices([429, 500, 503, 410], k=3)
            if draw > 0.8:
                await asyncio.sleep(0)
        server.refusals.clear()
        await eventually(lambda: seen.names == set(server.objects))
        phases = {pod.facts.name: pod.facts.phase for pod in seen._cache.pods(GAME, "")}
        await eventually(lambda: phases.keys() == server.objects.keys())
        await server.change("ADDED", "last")
        await eventually(lambda: "last" in seen.names)
        phases = {pod.facts.name: pod.facts.phase for pod in seen._cache.pods(GAME, "")}
        assert phases == {name: body.get("status", {}).get("phase", "Pending") for name, body in server.objects.items()}
        assert changes == 150


async def test_a_watch_that_ends_at_once_again_and_again_is_out_of_step() -> None:
    server = FaultyServer()
    async with watching(server) as seen:
        await eventually(lambda: server.watches)
        server.refusals = [200] * 1000  # an empty answer
        server.end()
        await eventually(lambda: not seen.informer.synced.is_set())
        await server.change("ADDED", "p0")
        server.refusals.clear()
        await seen.informer.synced.wait()
        assert seen.names == {"p0"}
        assert seen.informer.lists == 1


async def test_a_watch_that_is_not_accepted_is_out_of_step_and_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "OPENING_SECONDS", 0.1)
    monkeypatch.setattr(module, "HEADER_SECONDS", 0.3)
    server = FaultyServer()
    async with watching(server) as seen:
        await eventually(lambda: server.watches)
        server.hangs = True
        server.end()
        await eventually(lambda: not seen.informer.synced.is_set())
        await server.change("ADDED", "p0")
        server.hangs = False
        await seen.informer.synced.wait()
        assert seen.names == {"p0"}
        assert seen.informer.lists == 1
