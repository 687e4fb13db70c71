"""A node before another one, that lags, fails, limits or answers nonsense as the test says."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from chain_crowd import Ground, stepped, tester_ground

from swarmgame_chain.errors import RpcError
from swarmgame_chain.rpc import Call, RpcClient

Rule = Callable[[str, Sequence[Any]], Any]
NULL = object()
"""A rule's answer for JSON's null."""


class NodeInFront:
    """A node before the node: `rule` returns another answer for a call, raises, or returns None for the right one."""

    def __init__(self, node: RpcClient) -> None:
        self.node = node
        self.rule: Rule = lambda method, parameters: None
        self.calls: Counter[str] = Counter()

    async def request(self, method: str, *parameters: Any) -> Any:
        (answer,) = await self.request_all([(method, parameters)])
        if isinstance(answer, RpcError):
            raise answer
        return answer

    async def request_all(self, calls: Sequence[Call]) -> list[Any]:
        answers = []
        for method, parameters in calls:
            self.calls[method] += 1
            answer = self.rule(method, parameters)
            if answer is NULL:
                answers.append(None)
                continue
            answers += [answer] if answer is not None else await self.node.request_all([(method, parameters)])
        return answers

    async def close(self) -> None:
        await self.node.close()


async def ground_behind() -> tuple[Ground, NodeInFront]:
    """Return a contract with three registered peers, and a node in front of its node."""
    ground = await tester_ground()
    await stepped(ground.gateway(), [ground.registration(n) for n in range(3)])
    return ground, NodeInFront(ground.chain)


def raising(error: Exception) -> Rule:
    def rule(method: str, parameters: Sequence[Any]) -> Any:
        raise error

    return rule


def answering(method: str, answer: Any) -> Rule:
    return lambda each, parameters: answer if each == method else None


def failing(text: str) -> RpcError:
    return RpcError(-32000, text)
