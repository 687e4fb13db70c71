"""A peer's voice on chain for programs that are not asyncio: `PeerOnChain` in a thread of its own.

`register` and `report` return at once; what comes of them is told by `snapshot`. Invariant: nothing here raises for
what the chain, the gateway or the network does, and `stop` never waits longer than it was told to.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from swarmgame_chain.client import PeerOnChain, Sent
from swarmgame_chain.errors import ChainError
from swarmgame_chain.messages import Domain
from swarmgame_chain.reader import Coordinator
from swarmgame_chain.rpc import HttpRpcClient


@dataclass(frozen=True, slots=True)
class Standing:
    """How a peer stands with the chain.

    Args:
        registered: whether its registration is final.
        rejected: the contract's word for the last rejection.
        problem: why nothing gets through at present.
    """

    registered: bool
    waiting: int
    final: int
    rejected_count: int
    rejected: str
    dropped: int
    problem: str


class Voice:
    """Speaks for one peer.

    Args: as of `PeerOnChain`.
    """

    def __init__(self, domain: Domain, identity: bytes, gateway: str, *, owner: str = "", sealed: bool = False) -> None:
        self._peer = PeerOnChain(domain, identity, gateway, owner, sealed, on_over=self._over)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._work, name="chain", daemon=True)
        self._task: asyncio.Task[None] | None = None
        self._registered = threading.Event()
        self._rejected = ""

    @property
    def peer(self) -> str:
        """The peer id that it speaks for."""
        return self._peer.peer

    def start(self) -> None:
        """Begins, with a registration."""
        self._thread.start()
        self._do(self._peer.register)

    def wait_until_registered(self, seconds: float) -> bool:
        """Whether the registration became final in time: readiness, where admission asks for it."""
        return self._registered.wait(seconds)

    def report(self, round: int, mean_reward: float, winners: tuple[str, ...] = ()) -> None:
        """Says what this peer has to say of a round; returns at once."""
        self._do(lambda: self._peer.report(round, mean_reward, winners))

    def snapshot(self) -> Standing:
        """How it stands; cheap, from any thread."""
        ended = dict(self._peer.ended)
        return Standing(
            registered=self._registered.is_set(),
            waiting=self._peer.waiting,
            final=sum(count for (state, _), count in ended.items() if state == "final"),
            rejected_count=sum(count for (state, _), count in ended.items() if state == "rejected"),
            rejected=self._rejected,
            dropped=self._peer.dropped,
            problem=self._peer.problem,
        )

    def stop(self, patience: float = 0.0) -> Standing:
        """Waits for what is on its way, up to `patience` seconds, and ends; returns how it stood."""
        end = time.monotonic() + patience
        # What was said last may not be in line yet, and an empty line would look like the end of it.
        said = threading.Event()
        self._do(said.set)
        said.wait(min(patience, 5.0))
        while self._peer.waiting and time.monotonic() < end:
            time.sleep(0.05)
        self._loop.call_soon_threadsafe(lambda: self._task.cancel() if self._task else None)
        self._thread.join(5.0)
        return self.snapshot()

    def _work(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._task = self._loop.create_task(self._peer.run())
        try:
            self._loop.run_until_complete(self._task)
        except asyncio.CancelledError:
            return
        finally:
            self._loop.close()

    def _do(self, what: Callable[[], object]) -> None:
        self._loop.call_soon_threadsafe(what)

    def _over(self, sent: Sent) -> None:
        if sent.state == "rejected":
            self._rejected = sent.reason
        elif type(sent.message).__name__ == "Registration":
            self._registered.set()


def ask_once(rpc: str, domain: Domain) -> tuple[int, tuple[str, ...]]:
    """The chain's round and bootnodes, for a peer that starts.

    Raises:
        ChainError: the node does not answer, or is of another chain, or has another contract; says which.
    """

    async def request() -> tuple[int, tuple[str, ...]]:
        async with HttpRpcClient(rpc) as chain:
            coordinator = Coordinator(chain, domain)
            await coordinator.check()
            return await coordinator.round(), await coordinator.bootnodes()

    return asyncio.run(request())


def proven_among(rpc: str, domain: Domain, peers: tuple[str, ...]) -> frozenset[str]:
    """Which of these peers have proven their id; none when the chain does not answer, so that the caller keeps what it
    knew.
    """

    async def request() -> frozenset[str]:
        async with HttpRpcClient(rpc) as chain:
            return await Coordinator(chain, domain).proven(peers)

    try:
        return asyncio.run(request())
    except ChainError:
        return frozenset()
