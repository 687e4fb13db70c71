"""Whether the contract recorded a report: a node that cannot tell delays it, and holds up nothing else."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import pytest
from chain_crowd import states, stepped
from node_in_front import NULL, NodeInFront, Rule, answering, failing, ground_behind

from swarmgame_chain.errors import RpcError
from swarmgame_chain.gateway import comparison
from swarmgame_chain.gateway.comparison import MAX_FAILURES
from swarmgame_chain.rpc import Call


async def test_an_old_report_on_a_node_with_short_searches_does_not_stop_the_others() -> None:
    ground, node = await ground_behind()
    old = ground.report(0, 0, 1)
    await stepped(ground.gateway(), [old])
    for _ in range(30):
        ground.chain.tester.mine_block()  # type: ignore[attr-defined]

    def short(method: str, parameters: Sequence[Any]) -> Any:
        if method == "eth_getLogs":
            first, last = (int(parameters[0][name], 16) for name in ("fromBlock", "toBlock"))
            if last - first >= 10:
                return RpcError(-32602, "query exceeds max block range 10")
        return None

    node.rule = short
    entries = await stepped(ground.gateway(chain=node), [ground.report(1, 0, 1), old, ground.report(2, 0, 1)])
    assert states(entries) == ["final"] * 3


async def test_a_message_that_cannot_be_compared_waits_while_the_others_go_on() -> None:
    ground, node = await ground_behind()
    old = ground.report(0, 0, 1)
    await stepped(ground.gateway(), [old])
    node.rule = answering("eth_getLogs", failing("no logs here"))
    gateway = ground.gateway(chain=node)
    entries = await stepped(gateway, [old, ground.report(1, 0, 1), ground.report(2, 0, 1)])
    assert states(entries) == ["queued", "final", "final"]
    node.rule = lambda method, parameters: None
    ground.chain.tester.mine_block()  # type: ignore[attr-defined]
    for _ in range(2):
        await gateway.step()
    assert states(entries) == ["final"] * 3


@pytest.mark.parametrize(
    "rule",
    [
        answering("eth_getLogs", []),
        answering("eth_blockNumber", "0x1"),
        answering("eth_getTransactionByHash", NULL),
        answering("eth_getTransactionReceipt", NULL),
    ],
    ids=["no logs", "an old head", "no transaction", "no receipt"],
)
async def test_a_machine_that_lags_makes_no_recorded_report_a_repeated_one(rule: Rule) -> None:
    ground, node = await ground_behind()
    # A vote for oneself does not count, so the event names fewer winners than the report.
    old = ground.report(0, 0, 1, winners=[1, 0])
    await stepped(ground.gateway(), [old])
    node.rule = rule
    gateway = ground.gateway(chain=node)
    entries = await stepped(gateway, [old], most=3)
    assert "rejected" not in states(entries)[0]
    node.rule = lambda method, parameters: None
    ground.chain.tester.mine_block()  # type: ignore[attr-defined]
    await gateway.step()
    assert states(entries) == ["final"]


async def test_a_report_that_is_never_shown_counts_as_repeated_after_twenty_blocks() -> None:
    ground, node = await ground_behind()
    old = ground.report(0, 0, 1)
    await stepped(ground.gateway(), [old])
    node.rule = answering("eth_getLogs", [])
    gateway = ground.gateway(chain=node)
    entries = await stepped(gateway, [old], most=1)
    for _ in range(MAX_FAILURES - 1):
        assert states(entries) == ["queued"]
        ground.chain.tester.mine_block()  # type: ignore[attr-defined]
        await gateway.step()
    assert states(entries) == ["rejected RewardAlreadySubmitted"]


async def test_searches_that_take_long_hold_up_neither_a_step_nor_another_message(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ground, node = await ground_behind()
    old = [ground.report(0, 0, 1), ground.report(1, 0, 1)]
    await stepped(ground.gateway(), old)
    monkeypatch.setattr(comparison, "SECONDS", 0.1)
    monkeypatch.setattr(node, "request_all", slow_for(node, "eth_getLogs", 60.0))
    gateway = ground.gateway(chain=node)
    began = time.monotonic()
    entries = await stepped(gateway, [*old, ground.report(2, 0, 1)])
    assert time.monotonic() - began < 30
    assert (states(entries), [entry.failures for entry in entries]) == (["queued", "queued", "final"], [1, 1, 0])


def slow_for(node: NodeInFront, slow: str, seconds: float) -> Callable[[Sequence[Call]], Awaitable[list[Any]]]:
    usual = node.request_all

    async def request_all(calls: Sequence[Call]) -> list[Any]:
        if any(method == slow for method, _ in calls):
            await asyncio.sleep(seconds)
        return await usual(calls)

    return request_all


async def test_a_recent_report_is_found_with_one_search_on_a_node_with_short_searches() -> None:
    ground, node = await ground_behind()
    for _ in range(30):
        ground.chain.tester.mine_block()  # type: ignore[attr-defined]
    old = ground.report(0, 0, 1)
    await stepped(ground.gateway(), [old])
    gateway = ground.gateway(chain=node)
    gateway.coordinator.logs.span = 8
    assert states(await stepped(gateway, [old])) == ["final"]
    assert node.calls["eth_getLogs"] == 1
