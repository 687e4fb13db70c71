"""The chain of a local run: started for mode Dev, and watched while the peers play.

What is shown is read from the chain itself, not from what the peers report. A node that does not answer delays neither
the peers nor the display.
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
from swarmgame.errors import InvalidManifest, writing
from swarmgame.game.state import PeerId
from swarmgame.observability.run_directory import write_atomically
from swarmgame_chain.anvil import find_anvil
from swarmgame_chain.dev import DevChain
from swarmgame_chain.errors import BadChainUsage, ChainError
from swarmgame_chain.messages import Domain
from swarmgame_chain.reader import Coordinator, EventCursor
from swarmgame_chain.rpc import NodeClient

logger = logging.getLogger(__name__)
POLL_SECONDS = 2.0
SETTLE_SECONDS = 15.0
"""Longest wait, after the last round, for the chain's round to follow."""


def require_anvil() -> None:
    """Check, before anything is written, that a Dev chain can be started.

    Raises:
        InvalidManifest: anvil is not installed; the message tells how to install it.
    """
    try:
        find_anvil()
    except BadChainUsage as error:
        raise InvalidManifest("spec.coordination.mode", "Dev", f"None here, because {error}") from error


@contextmanager
def dev_chain(folder: Path, bootnodes: Sequence[str]) -> Iterator[ChainEndpoint]:
    """Start a Dev chain with a contract and a gateway, or the one of the run that is resumed.

    Raises:
        Temporary: a process did not start; the message names it.
    """
    with chain_errors("Dev"), writing(folder):
        chain = DevChain(folder, bootnodes=tuple(bootnodes)).start()
    try:
        yield ChainEndpoint(chain.rpc, chain.gateway, chain.domain.chain_id, chain.domain.contract)
    finally:
        chain.stop()


@dataclass(frozen=True, slots=True)
class ChainSummary:
    """The chain's state of a run.

    Args:
        round: the contract's round; N once N rounds are over.
        proven: how many of the run's peers have proven their id.
        peers: how many peers the run has.
        reports: how many are final; on an External chain, since the run was started.
    """

    chain_id: int
    contract: str
    round: int
    proven: int
    peers: int
    reports: int

    @property
    def line(self) -> str:
        proven = f"{self.proven} peer{'s' if self.proven != 1 else ''} proven"
        if self.proven != self.peers:
            proven = f"{self.proven} of {self.peers} peers proven"
        return f"chain: round {self.round}, {proven}, {self.reports} report{'s' if self.reports != 1 else ''} final"


class ChainMonitor:
    """Reads the chain every two seconds, in a thread of its own.

    Args:
        endpoint: where the chain is.
        peers: the ids of the run's peers.
        file: where the last state is kept, for the run's report.
        from_genesis: whether the chain holds this run only, so that all its events count.
    """

    def __init__(self, endpoint: ChainEndpoint, peers: Sequence[PeerId], file: Path, *, from_genesis: bool) -> None:
        self._rpc = endpoint.rpc
        self._domain = Domain(endpoint.chain_id, endpoint.contract)
        self._peers = tuple(peers)
        self._file = file
        self._first = 0 if from_genesis else -1
        self._cursor: EventCursor | None = None
        self._reports = 0
        self._is_away = False
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._work, name="chain-watch", daemon=True)
        self.summary: ChainSummary | None = None

    @property
    def line(self) -> str:
        """One line for people; empty before the first answer."""
        return self.summary.line if self.summary is not None else ""

    def start(self) -> None:
        self._thread.start()

    def settle(self, round: int) -> None:
        """Stop after a last reading; the chain gets up to 15 seconds to reach `round`."""
        self._done.set()
        self._thread.join(SETTLE_SECONDS)
        end = time.monotonic() + SETTLE_SECONDS
        while True:
            answered = self._poll()
            if not answered or self.summary is None or self.summary.round >= round or time.monotonic() > end:
                break
            time.sleep(0.2)
        if self.summary is not None:
            write_atomically(self._file, json.dumps(asdict(self.summary)) + "\n")

    def _work(self) -> None:
        while not self._done.is_set():
            self._poll()
            self._done.wait(POLL_SECONDS)

    def _poll(self) -> bool:
        try:
            self.summary = asyncio.run(self._read())
        except ChainError as error:
            if not self._is_away:
                logger.warning("the chain cannot be shown: %s; it is read again every two seconds", error)
            self._is_away = True
            return False
        self._is_away = False
        return True

    async def _read(self) -> ChainSummary:
        async with NodeClient(self._rpc, timeout=5.0) as chain:
            coordinator = Coordinator(chain, self._domain)
            if self._first < 0:
                self._first = int(await chain.request("eth_blockNumber"), 16) + 1
            if self._cursor is None:
                self._cursor = EventCursor(coordinator, self._first, ("RewardSubmitted",))
            # A connection belongs to one asyncio loop, and every reading has its own.
            self._cursor.coordinator = coordinator
            new, removed = await self._cursor.poll()
            self._reports += sum(event.block >= self._first for event in new) - len(removed)
            round, proven = await coordinator.round(), await coordinator.proven(self._peers)
            return ChainSummary(
                self._domain.chain_id, self._domain.contract, round, len(proven), len(self._peers), self._reports
            )
