"""A peer and its swarm's chain: it registers, tells of each round, and knows who has proven their id.

All of it happens in a thread of its own. The chain may be away at the start, in the middle and for ever: the peer plays
on, and what it has to say waits here, bounded. Only a chain or a contract that is another one is refused, at the start.
Invariant: nothing that the loop calls waits for the network, but `finish`, which comes after the last round and has a
deadline.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from swarmgame.chain.endpoint import ChainEndpoint, ours
from swarmgame.game.report import Observer, RoundReport
from swarmgame.game.state import GameState, PeerId, Rewards
from swarmgame.swarm.identity import public_key_of, split_address
from swarmgame_chain.errors import ChainError, ChainRefused
from swarmgame_chain.messages import MAX_VOTES, Domain
from swarmgame_chain.reader import Coordinator
from swarmgame_chain.rpc import HttpRpcClient
from swarmgame_chain.voice import Standing, Voice, proven_among

logger = logging.getLogger(__name__)
LOOK_SECONDS = 0.5
PATIENCE_SECONDS = 10.0
"""Longest wait for a node that does not answer, at the start."""
MAX_ASKED = 1_024
"""Unknown ids that are looked up at once; strangers can invent as many as they like."""
MAX_UNSAID = 1_000
"""Rounds that wait here while nobody knows the contract's terms yet."""
UNKNOWN = Standing(
    registered=False, waiting=0, final=0, rejected_count=0, rejected="", dropped=0, problem="the node does not answer"
)


@dataclass(frozen=True, slots=True)
class Terms:
    """What a peer asks the contract once: its round, where newcomers knock, and whether reports are sealed."""

    round: int
    bootnodes: tuple[str, ...]
    sealed: bool


class ChainLink:
    """One peer's link to its chain.

    Args:
        place: where the chain is.
        identity: the libp2p key's 32 secret bytes.
        peer: the id that the key stands for.
        changed: is told how the peer stands, from a thread of ours, whenever that has changed.
    """

    def __init__(
        self,
        place: ChainEndpoint,
        identity: bytes,
        peer: PeerId,
        *,
        changed: Callable[[Standing], None] = lambda standing: None,
    ) -> None:
        self._place = place
        self._domain = Domain(place.chain_id, place.contract)
        self._identity = identity
        self._peer = peer
        self._changed = changed
        self._terms: Terms | None = None
        self._voice: Voice | None = None
        self._said = 0
        self._unsaid: deque[tuple[int, float, tuple[PeerId, ...]]] = deque(maxlen=MAX_UNSAID)
        self._lock = threading.Lock()
        self._proven: frozenset[PeerId] = frozenset({peer})
        self._asked: set[PeerId] = set()
        self._refused = ""
        self._done = threading.Event()
        self._registered = threading.Event()
        self._thread = threading.Thread(target=self._work, name="chain-link", daemon=True)

    def start(self) -> tuple[str, ...]:
        """Begins, with a registration; returns the bootnodes that the chain names, none when it does not answer now.

        Raises:
            Refused: the node is of another chain, or there is no such contract; says which.
        """
        try:
            self._begin(asyncio.run(_terms(self._place.rpc, self._domain)))
        except ChainRefused as error:
            raise ours(error) from error
        except ChainError as error:
            logger.warning("the chain is away (%s); we play without it until it is back", error)
        self._thread.start()
        return tuple(filter(_usable, self._terms.bootnodes)) if self._terms is not None else ()

    def admits(self, peer: PeerId) -> bool:
        """Whether a peer has proven its id, as far as we know. Answers at once; an id that is new is looked up, and
        known when it asks again.
        """
        if peer in self._proven:
            return True
        if public_key_of(peer) is not None:  # anything else is nobody's id, and not worth a question
            with self._lock:
                if len(self._asked) < MAX_ASKED:
                    self._asked.add(peer)
        return False

    def wait_until_registered(self, seconds: float, over: Callable[[], bool]) -> bool:
        """Whether our registration became final in time; `over` ends the wait."""
        end = time.monotonic() + seconds
        while not self._registered.wait(0.1) and not over() and time.monotonic() < end:
            continue
        return self._registered.is_set()

    def report(self, round: int, mean_reward: float, winners: tuple[PeerId, ...]) -> None:
        """Says what we have to say of a round; returns at once."""
        with self._lock:
            self._said += 1
            if self._voice is None:
                self._unsaid.append((round, mean_reward, winners))
            else:
                self._voice.report(round, mean_reward, winners)

    def snapshot(self) -> Standing:
        """How we stand; cheap, from any thread."""
        if self._voice is not None:
            return self._voice.snapshot()
        why = self._refused or UNKNOWN.problem
        return Standing(
            registered=False, waiting=self._said, final=0, rejected_count=0, rejected="", dropped=0, problem=why
        )

    def finish(self, patience: float, over: Callable[[], bool]) -> Standing:
        """Waits until all that we said is over, up to `patience` seconds or until `over`, and says what is not."""
        end = time.monotonic() + patience
        while self._open(self.snapshot()) and not over() and time.monotonic() < end:
            time.sleep(0.05)
        standing = self.snapshot()
        if standing.waiting:
            logger.warning(
                "%d messages did not reach the chain: %s", standing.waiting, standing.problem or "it was too slow"
            )
        self.stop()
        return standing

    def stop(self) -> None:
        """Ends at once; more than once does no harm."""
        if self._done.is_set():
            return
        self._done.set()
        if self._thread.is_alive():
            self._thread.join(2.0)
        if self._voice is not None:
            self._changed(self._voice.stop())

    def _open(self, standing: Standing) -> bool:
        # What was handed to the voice's thread a moment ago is not counted as waiting yet.
        over = standing.final + standing.rejected_count + standing.dropped
        return standing.waiting > 0 or (self._voice is not None and over < self._said + 1)

    def _begin(self, terms: Terms) -> None:
        voice = Voice(self._domain, self._identity, self._place.gateway, sealed=terms.sealed)
        voice.start()
        with self._lock:
            self._terms, self._voice = terms, voice
            for round, mean_reward, winners in self._unsaid:
                voice.report(round, mean_reward, winners)
            self._unsaid.clear()

    def _work(self) -> None:
        before: Standing | None = None
        while not self._done.wait(LOOK_SECONDS):
            if self._voice is None and not self._refused:
                self._try_to_begin()
            self._look_up()
            standing = self.snapshot()
            if standing.registered:
                self._registered.set()
            if standing != before and not self._done.is_set():
                self._changed(standing)
                before = standing

    def _try_to_begin(self) -> None:
        try:
            self._begin(asyncio.run(_terms(self._place.rpc, self._domain)))
            logger.info("the chain is back")
        except ChainRefused as error:
            self._refused = str(error)
            logger.error("the chain is not ours: %s", error)
        except ChainError:
            return

    def _look_up(self) -> None:
        with self._lock:
            asked, self._asked = tuple(self._asked), set()
        if asked:
            self._proven |= proven_among(self._place.rpc, self._domain, asked)


class ChainObserver(Observer):
    """Tells the chain of each round: our mean reward, and from whom we learnt most."""

    def __init__(self, link: ChainLink) -> None:
        self._link = link

    def round_finished(self, report: RoundReport, state: GameState, rewards: Rewards) -> None:
        self._link.report(report.round, report.reward, winners_of(report.external))


def winners_of(external: Mapping[PeerId, int]) -> tuple[PeerId, ...]:
    """The peers whose groups were learnt most from, at most 8; of equals the lower id comes first."""
    ranked = sorted((peer for peer, groups in external.items() if groups > 0), key=lambda peer: (-external[peer], peer))
    return tuple(ranked[:MAX_VOTES])


def _usable(bootnode: str) -> bool:
    # Whoever manages the contract may have written anything there.
    try:
        split_address(bootnode)
    except ValueError as error:
        logger.warning("a bootnode of the chain is left out: %s", error)
        return False
    return True


async def _terms(rpc: str, domain: Domain) -> Terms:
    async with HttpRpcClient(rpc, timeout=PATIENCE_SECONDS) as chain:
        coordinator = Coordinator(chain, domain)
        await coordinator.check()
        config = await coordinator.config()
        return Terms(await coordinator.round(), await coordinator.bootnodes(), config.sealed_reports)
