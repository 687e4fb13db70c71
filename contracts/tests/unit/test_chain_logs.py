"""Searches of logs on nodes that limit them."""

from __future__ import annotations

from typing import Any

import pytest

from swarmgame_chain.errors import ChainUnreachable, RequestTooLarge, RpcError
from swarmgame_chain.logs import LogSearch

CONTRACT = "0x" + "11" * 20


class LimitedNode:
    """A node with one log in each block, that gives at most some blocks at once."""

    def __init__(self, most: int, error: Exception) -> None:
        self.most, self.error = most, error
        self.searches = 0

    async def request(self, method: str, *parameters: Any) -> Any:
        self.searches += 1
        first, last = (int(parameters[0][name], 16) for name in ("fromBlock", "toBlock"))
        if last - first >= self.most:
            raise self.error
        return [{"block": number} for number in range(first, last + 1)]


@pytest.mark.parametrize(
    "error",
    [
        RpcError(-32602, "query exceeds max block range 2000"),
        RpcError(-32005, "query returned more than 10000 results"),
        RpcError(-32000, "a sentence that says nothing"),
        RequestTooLarge("the node answers with more than 8388608 bytes"),
    ],
    ids=str,
)
async def test_a_limit_is_found_by_halving_and_remembered(error: Exception, caplog: pytest.LogCaptureFixture) -> None:
    node = LimitedNode(300, error)
    search = LogSearch(node, CONTRACT)  # type: ignore[arg-type]
    assert [log["block"] for log in await search.find(5, 9_000)] == list(range(5, 9_001))
    assert search.span == 250
    assert caplog.text.count("searches have at most") == 3
    node.searches = 0
    await search.find(0, 999)
    assert node.searches == 4


async def test_a_limit_that_has_passed_is_forgotten_and_one_that_stays_is_not_logged_again(
    caplog: pytest.LogCaptureFixture,
) -> None:
    node = LimitedNode(300, RpcError(-32602, "too wide"))
    search = LogSearch(node, CONTRACT)  # type: ignore[arg-type]
    await search.find(0, 1_999)
    for _ in range(200):
        await search.find(0, 0)
    assert search.span == 1_000
    await search.find(0, 1_999)
    assert search.span == 250
    node.most = 10_000
    for _ in range(300):
        await search.find(0, 0)
    assert search.span == 2_000
    assert caplog.text.count("searches have at most") == 3


async def test_a_node_that_refuses_one_block_refuses_all() -> None:
    with pytest.raises(RpcError, match="no logs here"):
        await LogSearch(LimitedNode(0, RpcError(-32601, "no logs here")), CONTRACT).find(0, 9)  # type: ignore[arg-type]


async def test_a_node_that_is_away_is_not_searched_in_ever_smaller_parts() -> None:
    node = LimitedNode(0, ChainUnreachable("away"))
    search = LogSearch(node, CONTRACT)  # type: ignore[arg-type]
    with pytest.raises(ChainUnreachable, match="away"):
        await search.find(0, 9_000)
    assert (node.searches, search.span) == (1, 2_000)


async def test_nothing_is_read_of_an_empty_range() -> None:
    assert await LogSearch(LimitedNode(1, RpcError(0, "")), CONTRACT).find(5, 4) == []  # type: ignore[arg-type]
