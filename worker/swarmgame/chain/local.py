"""The chain of a local run: brought up for mode Dev, and looked at while the peers play.

What is shown is read from the chain itself, never from what the peers say they sent. Invariant: the chain's processes
end with the `with` block, and a node that does not answer holds up neither the peers nor the view.
"""

from __future__ import annotations

import asyncio
import json
import logging
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from swarmgame.chain.endpoint import ChainEndpoint, chain_errors
from swarmgame.errors import InvalidManifest
from swarmgame.game.state import PeerId
from swarmgame.observability.run_directory import write_whole
from swarmgame_chain.anvil import find_anvil
from swarmgame_chain.dev import DevChain
from swarmgame_chain.errors import BadChainUsage, ChainError
from swarmgame_chain.messages import Domain
from swarmgame_chain.reader import Coordinator, EventCursor
from swarmgame_chain.rpc import HttpRpcClient

logger = logging.getLogger(__name__)
LOOK_SECONDS = 2.0
SETTLE_SECONDS = 15.0
"""Longest wait, after the last round, for the chain's round to follow."""


def require_anvil() -> None:
    """Checks, before anything is written, that a chain of our own can be had.

    Raises:
        InvalidManifest: anvil is not installed; says how to get it.
    """
    try:
        find_anvil()
    except BadChainUsage as error:
        raise InvalidManifest("spec.coordination.mode", "Dev", f"None here, because {error}") from error


@contextmanager
def dev_chain(folder: Path, bootnodes: Sequence[str]) -> Iterator[ChainEndpoint]:
    """A chain of our own, with a contract and a gateway; found again when the run is resumed.

    Raises:
        Temporary: a process did not come up; says which.
    """
    with chain_errors("Dev"):
        chain = DevChain(folder, bootnodes=tuple(bootnodes)).start()
    try:
        yield ChainEndpoint(chain.rpc, chain.gateway, chain.domain.chain_id, chain.domain.contract)
    finally:
        chain.stop()


@dataclass(frozen=True, slots=True)
class ChainSummary:
    """What the chain says of a run.

    Args:
        round: the contract's; N once N rounds are over.
        proven: how many of the run's peers have proven their id.
        peers: how many the run has.
        reports: that are final; of an External chain, since the run was started.
    """

    chain_id: int
    contract: str
    round: int
    proven: int
    peers: int
    reports: int

    @property
    def sentence(self) -> str:
        proven = f"{self.proven} peer{'s' if self.proven != 1 else ''} proven"
        if self.proven != self.peers:
            proven = f"{self.proven} of {self.peers} peers proven"
        return f"chain: round {self.round}, {proven}, {self.reports} report{'s' if self.reports != 1 else ''} final"


class ChainMonitor:
    """Looks at the chain every two seconds, in a thread of its own.

    Args:
        place: where the chain is.
        peers: the ids of the run's peers.
        file: where the last standing is kept, for the report.
        from_genesis: whether the chain holds this run and nothing else, so that its whole past counts.
    """

    def __init__(self, place: ChainEndpoint, peers: Sequence[PeerId], file: Path, *, from_genesis: bool) -> None:
        self._rpc = place.rpc
        self._domain = Domain(place.chain_id, place.contract)
        self._peers = tuple(peers)
        self._file = file
        self._first = 0 if from_genesis else -1
        self._cursor: EventCursor | None = None
        self._reports = 0
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._work, name="chain-watch", daemon=True)
        self.standing: ChainSummary | None = None

    @property
    def line(self) -> str:
        """For people; empty before the first answer."""
        return self.standing.sentence if self.standing is not None else ""

    def start(self) -> None:
        self._thread.start()

    def settle(self, round: int) -> None:
        """Ends, with a last look; before it the chain gets up to 15 seconds to reach `round`."""
        self._done.set()
        self._thread.join(SETTLE_SECONDS)
        end = time.monotonic() + SETTLE_SECONDS
        while True:
            answered = self._look()
            if not answered or self.standing is None or self.standing.round >= round or time.monotonic() > end:
                break
            time.sleep(0.2)
        if self.standing is not None:
            write_whole(self._file, json.dumps(asdict(self.standing)) + "\n")

    def _work(self) -> None:
        while not self._done.is_set():
            self._look()
            self._done.wait(LOOK_SECONDS)

    def _look(self) -> bool:
        try:
            self.standing = asyncio.run(self._ask())
        except ChainError as error:
            logger.debug("the chain is not to be seen: %s", error)
            return False
        return True

    async def _ask(self) -> ChainSummary:
        async with HttpRpcClient(self._rpc, timeout=5.0) as chain:
            coordinator = Coordinator(chain, self._domain)
            if self._first < 0:
                self._first = int(await chain.request("eth_blockNumber"), 16) + 1
            if self._cursor is None:
                self._cursor = EventCursor(coordinator, self._first, ("RewardSubmitted",))
            self._cursor.coordinator = (
                coordinator  # a connection belongs to one asyncio loop, and every look has its own
            )
            new, removed = await self._cursor.poll()
            self._reports += sum(event.block >= self._first for event in new) - len(removed)
            round, proven = await coordinator.round(), await coordinator.proven(self._peers)
            return ChainSummary(
                self._domain.chain_id, self._domain.contract, round, len(proven), len(self._peers), self._reports
            )
