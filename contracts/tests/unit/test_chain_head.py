"""The newest block: never an older one than was seen, and read about once a block."""

from __future__ import annotations

from typing import Any

import pytest
from fake_node import HASH

from swarmgame_chain.errors import ChainUnreachable
from swarmgame_chain.head import SHORTER_SECONDS, Block, BlockPace, HeadReader

DAY = 24 * 3_600
CALLS_OF_A_BLOCK = 3
"""Calls of an idle gateway for a new block, beside the head: two of the contract's clock, one search of logs."""


class Heads:
    """A node of which only the head is read."""

    def __init__(self, *numbers: int) -> None:
        self.numbers = list(numbers)

    async def request(self, method: str, *parameters: Any) -> Any:
        number = self.numbers.pop(0)
        return {"number": hex(number), "hash": HASH, "timestamp": hex(1_000 + number)}


async def test_an_older_head_than_was_seen_is_no_answer() -> None:
    now = 0.0
    reader = HeadReader(Heads(10, 12, 11, 12, 3, 3), clock=lambda: now)  # type: ignore[arg-type]
    assert [(await reader.read()).number for _ in range(2)] == [10, 12]
    with pytest.raises(ChainUnreachable, match="it was at block 12 and is at 11; if its address stands for"):
        await reader.read()
    assert (await reader.read()).number == 12
    now = SHORTER_SECONDS - 1
    with pytest.raises(ChainUnreachable):
        await reader.read()
    now = SHORTER_SECONDS
    assert (await reader.read()).number == 3, "a chain that stays shorter was reorganised"
    assert reader.lagging == 3


def calls_in_a_day(seconds: float, late: float = 0.0, interval: float = 0.25) -> int:
    """Return the calls of an idle gateway on a chain with a block every `seconds`, each seen `late` seconds later."""
    pace, now, calls, seen = BlockPace(interval), 0.0, 0, -1
    while now < DAY:
        number = int(max(0.0, now - late) // seconds)
        pace.observe(Block(number, f"0x{number:064x}", int(number * seconds)), now)
        calls += 1 + CALLS_OF_A_BLOCK * (number != seen)
        seen = number
        now += pace.delay(now)
    return calls


@pytest.mark.parametrize("late", [0.0, 0.4, 5.0, 11.9])
def test_an_idle_gateway_makes_at_most_50_000_calls_a_day_on_blocks_of_12_seconds(late: float) -> None:
    assert 28_000 <= calls_in_a_day(12.0, late) <= 50_000


def test_a_chain_without_new_blocks_is_asked_every_five_seconds() -> None:
    assert calls_in_a_day(10.0 * DAY) <= DAY / 5 + 100


def test_a_block_is_seen_soon_after_it_is_made_and_a_transaction_sooner() -> None:
    pace = BlockPace(0.25)
    for number in range(3):
        pace.observe(Block(number, str(number), 12 * number), 12.0 * number)
    assert pace.period == 12.0
    assert pace.delay(24.1) == pytest.approx(11.9)
    assert pace.delay(36.5) == pytest.approx(2.0)
    assert [pace.delay(24.1, sent_at) for sent_at in (24.1, 23.5, 20.0)] == pytest.approx([0.25, 0.6, 1.0])


def test_times_of_blocks_that_are_far_apart_make_no_long_wait() -> None:
    pace = BlockPace(0.25)
    for number in range(3):
        pace.observe(Block(number, str(number), 10**9 * number), float(number))
    assert (pace.period, pace.delay(2.0)) == (60.0, 60.0)
    assert pace.delay(1_000.0) == 10.0


def test_blocks_on_demand_are_seen_at_the_interval_after_a_transaction_however_long_it_was_quiet() -> None:
    pace = BlockPace(0.1)
    for number in range(20):
        pace.observe(Block(number, str(number), 60 * number), 60.0 * number)
    assert pace.delay(60.0 * 19 + 30, 60.0 * 19 + 30) == 0.1
    pace.observe(Block(20, "20", 60 * 19), 60.0 * 19 + 30.1)
    assert pace.period == 0.0
    assert pace.delay(60.0 * 19 + 31.1) == pytest.approx(0.5)
    assert pace.delay(60.0 * 30) == 5.0
