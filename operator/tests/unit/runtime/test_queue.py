"""The work queue, in virtual time: no key is lost, none is processed twice at once, and failures back off."""

from __future__ import annotations

import asyncio
import itertools
from collections import Counter

import looptime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from swarmgame_operator.errors import LeadershipLost, Retry
from swarmgame_operator.queue import Turns, WorkQueue


def virtually(coroutine):  # type: ignore[no-untyped-def]
    """Run a coroutine on a loop with virtual time."""
    loop = looptime.patch_event_loop(asyncio.new_event_loop(), start=0.0)
    try:
        return loop.run_until_complete(coroutine)
    finally:
        loop.close()


async def drained(queue: WorkQueue[str], workers: list[asyncio.Task[None]], seconds: float) -> None:
    await asyncio.sleep(seconds)
    for worker in workers:
        worker.cancel()
    await asyncio.gather(*workers, return_exceptions=True)


def test_a_key_added_many_times_before_it_is_taken_is_worked_on_once() -> None:
    async def scenario() -> list[str]:
        queue: WorkQueue[str] = WorkQueue()
        seen: list[str] = []

        async def work(key: str) -> None:
            seen.append(key)

        for _ in range(100):
            queue.add("a")
            queue.add_after("b", 5)
        assert (queue.depth, queue.delayed) == (1, 1)
        await drained(queue, [asyncio.create_task(queue.work(work))], 10)
        return seen

    assert virtually(scenario()) == ["a", "b"]


def test_a_key_added_while_it_is_worked_on_is_worked_on_again_and_never_by_two() -> None:
    async def scenario() -> tuple[int, int]:
        queue: WorkQueue[str] = WorkQueue()
        at_once = most = runs = 0

        async def work(key: str) -> None:
            nonlocal at_once, most, runs
            at_once += 1
            runs += 1
            most = max(most, at_once)
            await asyncio.sleep(3)
            at_once -= 1

        workers = [asyncio.create_task(queue.work(work)) for _ in range(4)]
        queue.add("a")
        await asyncio.sleep(1)
        for _ in range(10):
            queue.add("a")
        await drained(queue, workers, 30)
        return most, runs

    assert virtually(scenario()) == (1, 2)


@pytest.mark.parametrize("workers", [1, 3])
def test_urgent_keys_go_first_and_the_others_still_get_one_turn_in_four(workers: int) -> None:
    async def scenario() -> list[str]:
        queue: WorkQueue[str] = WorkQueue(urgent=lambda key: key.startswith("new"))
        seen: list[str] = []

        async def work(key: str) -> None:
            seen.append(key)
            await asyncio.sleep(1)

        for number in range(6):
            queue.add(f"old-{number}")
        for number in range(9):
            queue.add(f"new-{number}")
        assert queue.depth == 15
        await drained(queue, [asyncio.create_task(queue.work(work)) for _ in range(workers)], 60)
        assert queue.depth == 0
        return seen

    seen = virtually(scenario())
    assert [each[:3] for each in seen] == [*(["new"] * 3 + ["old"]) * 3, *["old"] * 3]
    for kind in ("new", "old"):
        assert [each for each in seen if each.startswith(kind)] == sorted(
            each for each in seen if each.startswith(kind)
        )


def test_a_key_is_urgent_or_not_when_it_becomes_due_and_the_oldest_of_both_is_known() -> None:
    async def scenario() -> tuple[list[str], float]:
        queue: WorkQueue[str] = WorkQueue(urgent=lambda key: key not in begun)
        begun: set[str] = {"old"}
        seen: list[str] = []

        async def work(key: str) -> None:
            seen.append(key)
            begun.add(key)

        queue.add("old")
        await asyncio.sleep(5)
        queue.add("new")
        oldest = queue.oldest
        worker = asyncio.create_task(queue.work(work))
        await asyncio.sleep(1)
        queue.add("old")
        queue.add("new")  # has begun meanwhile
        await drained(queue, [worker], 1)
        return seen, oldest

    seen, oldest = virtually(scenario())
    assert seen == ["new", "old", "old", "new"]
    assert oldest == pytest.approx(5, abs=0.1)


def test_failures_wait_twice_as_long_each_time_up_to_the_longest_and_a_success_forgets_them() -> None:
    async def scenario() -> list[float]:
        queue: WorkQueue[str] = WorkQueue(first_delay=1, longest_delay=8, jitter=lambda: 0.0)
        times: list[float] = []

        async def work(key: str) -> None:
            times.append(asyncio.get_running_loop().time())
            if len(times) not in (6, 8):
                raise Retry(None, "Conflict")

        queue.add("a")
        worker = asyncio.create_task(queue.work(work))
        await asyncio.sleep(60)
        queue.add("a")
        await drained(queue, [worker], 60)
        return times

    times = virtually(scenario())
    assert [round(later - earlier) for earlier, later in itertools.pairwise(times[:6])] == [1, 2, 4, 8, 8]
    assert round(times[7] - times[6]) == 1
    assert len(times) == 8


def test_the_retry_delay_of_the_server_is_kept() -> None:
    async def scenario() -> list[float]:
        queue: WorkQueue[str] = WorkQueue(jitter=lambda: 0.9)
        times: list[float] = []

        async def work(key: str) -> None:
            times.append(asyncio.get_running_loop().time())
            if len(times) == 1:
                raise Retry(17, "TooManyRequests")

        queue.add("a")
        await drained(queue, [asyncio.create_task(queue.work(work))], 60)
        return times

    first, second = virtually(scenario())
    assert second - first == pytest.approx(17, abs=0.1)


def test_an_unknown_error_of_one_key_stops_neither_it_nor_the_others_and_is_counted() -> None:
    async def scenario() -> tuple[Counter[str], list[str]]:
        queue: WorkQueue[str] = WorkQueue()
        seen: Counter[str] = Counter()
        failed: list[str] = []

        async def work(key: str) -> None:
            seen[key] += 1
            if key == "bad" and seen[key] < 3:
                raise ZeroDivisionError

        for key in ("bad", "good"):
            queue.add(key)
        await drained(queue, [asyncio.create_task(queue.work(work, failed.append))], 60)
        return seen, failed

    seen, failed = virtually(scenario())
    assert seen == {"bad": 3, "good": 1}
    assert failed == ["ZeroDivisionError"] * 2


def test_losing_leadership_ends_the_worker() -> None:
    async def scenario() -> None:
        queue: WorkQueue[str] = WorkQueue()

        async def work(key: str) -> None:
            raise LeadershipLost("gone")

        queue.add("a")
        await queue.work(work)

    with pytest.raises(LeadershipLost):
        virtually(scenario())


def test_the_earlier_of_two_delays_counts() -> None:
    async def scenario() -> list[float]:
        queue: WorkQueue[str] = WorkQueue()
        times: list[float] = []

        async def work(key: str) -> None:
            times.append(asyncio.get_running_loop().time())

        queue.add_after("a", 10)
        queue.add_after("a", 5)
        queue.add_after("a", 20)
        await drained(queue, [asyncio.create_task(queue.work(work))], 60)
        return times

    assert [round(each) for each in virtually(scenario())] == [5]


def test_latency_depth_and_age_are_measured() -> None:
    async def scenario() -> list[float]:
        waited: list[float] = []
        queue: WorkQueue[str] = WorkQueue(waited=waited.append)
        queue.add("a")
        queue.add("b")
        await asyncio.sleep(4)
        assert queue.depth == 2
        assert queue.oldest == pytest.approx(4, abs=0.1)
        key = await queue.take()
        await asyncio.sleep(2)
        queue.done(key)
        await queue.take()
        return waited

    assert [round(each) for each in virtually(scenario())] == [4, 6]


def test_a_cancelled_taker_passes_its_turn_on() -> None:
    async def scenario() -> str:
        queue: WorkQueue[str] = WorkQueue()
        first, second = asyncio.create_task(queue.take()), asyncio.create_task(queue.take())
        await asyncio.sleep(0)
        queue.add("a")
        first.cancel()
        return await asyncio.wait_for(second, 5)

    assert virtually(scenario()) == "a"


Step = st.tuples(st.floats(0, 3), st.sampled_from("abcd"), st.floats(0, 4))


@settings(max_examples=150, deadline=None)
@given(
    steps=st.lists(Step, max_size=40),
    workers=st.integers(1, 4),
    failing=st.sets(st.integers(0, 60)),
    cost=st.floats(0, 2),
)
def test_every_addition_is_processed_after_it(
    steps: list[tuple[float, str, float]], workers: int, failing: set[int], cost: float
) -> None:
    """With random additions and failures: no key is lost, none is processed twice at once, and in the end nothing
    is left.
    """

    async def scenario() -> None:
        loop = asyncio.get_running_loop()
        queue: WorkQueue[str] = WorkQueue(jitter=lambda: 0.0, first_delay=0.5, longest_delay=4)
        added: dict[str, float] = {}
        good: dict[str, float] = {}
        busy: set[str] = set()
        runs = 0

        async def work(key: str) -> None:
            nonlocal runs
            assert key not in busy
            busy.add(key)
            began, runs = loop.time(), runs + 1
            number = runs
            await asyncio.sleep(cost)
            busy.remove(key)
            if number in failing:
                raise Retry(None, "Conflict")
            good[key] = began

        tasks = [asyncio.create_task(queue.work(work)) for _ in range(workers)]
        for pause, key, delay in steps:
            await asyncio.sleep(pause)
            queue.add_after(key, delay)
            added[key] = loop.time()
        await drained(queue, tasks, 4 * 60 + cost * 120)
        assert (queue.depth, queue.delayed) == (0, 0)
        assert good.keys() == added.keys()
        assert all(good[key] >= added[key] for key in added)

    virtually(scenario())


def test_the_age_of_the_oldest_work_can_be_read_from_another_thread() -> None:
    async def scenario() -> tuple[float, float]:
        queue: WorkQueue[str] = WorkQueue()
        none = await asyncio.to_thread(lambda: queue.oldest)
        queue.add("a")
        await asyncio.sleep(0.01)
        return none, await asyncio.to_thread(lambda: queue.oldest)

    none, age = asyncio.run(scenario())

    assert none == 0
    assert age >= 0.01


@settings(deadline=None)
@given(
    asks=st.lists(st.tuples(st.integers(0, 30), st.floats(0, 3), st.floats(0.001, 2)), max_size=200),
    share=st.sampled_from([0.05, 0.5]),
)
def test_turns_together_last_for_a_share_of_the_time(asks: list[tuple[int, float, float]], share: float) -> None:
    turns: Turns[int] = Turns(share, 2.0, longest=30.0)
    now = 0.0
    spent: list[tuple[float, float]] = []
    for key, later, seconds in asks:
        now += later
        if wait := turns.take(key, now):
            assert 0 < wait <= 30.0
        else:
            turns.took(seconds)
            spent.append((now, seconds))
    for first, (start, _) in enumerate(spent):
        for last in range(first, len(spent)):
            before = sum(seconds for _, seconds in spent[first:last])
            assert before <= 2.0 + (spent[last][0] - start) * share + 1e-6  # the last one began with some time left


def test_a_server_that_hung_is_asked_again_soon() -> None:
    turns: Turns[str] = Turns(0.05, 2.0, longest=30.0)
    for worker in range(16):
        assert turns.take(f"game-{worker}", 0.0) == 0
    for _ in range(16):
        turns.took(30.0)
    assert turns.take("game", 30.0) > 0
    assert turns.take("game", 30.0 + 4.0 / 0.05 + 1.0) == 0


def test_everyone_who_waits_for_a_turn_gets_one_soon_and_those_who_left_delay_nobody() -> None:
    turns: Turns[str] = Turns(0.05, 2.0, longest=30.0)
    due = dict.fromkeys((f"game-{index}" for index in range(600)), 8.0)
    had: dict[str, float] = {}
    while due:
        key, now = min(due.items(), key=lambda each: each[1])
        if wait := turns.take(key, now):
            due[key] = now + wait
        else:
            turns.took(0.005)  # an API server at ease
            had[key] = now
            del due[key]
    assert sum(moment <= 30.0 for moment in had.values()) >= 500
    assert max(had.values()) <= 8.0 + 2 * 600 * 0.005 / 0.05

    slow: Turns[str] = Turns(0.05, 2.0, longest=30.0)
    slow.take("slow", 0.0)
    slow.took(2.5)
    for index in range(1000):
        assert slow.take(f"left-{index}", 1.0) > 0
        slow.leave(f"left-{index}")
    assert slow.take("new", 1.0) <= 20.0
