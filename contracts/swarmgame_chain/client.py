"""A peer's side: it signs, hands its messages to the gateway, and asks until each is over. Training never waits for any
of it.

Whatever is not over stays here and is handed in again: to a gateway that was away, and to one that was restarted and
remembers nothing. Bounded: the oldest reports go first, and are counted. Runs as one asyncio task; `register`, `report`
and `commit` only sign and put in line. Invariant: every message ends `final` or `rejected` with a reason, or is counted
as dropped; none is forgotten.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

import aiohttp

from swarmgame_chain.messages import (
    Domain,
    Registration,
    SignedMessage,
    address_of,
    message_id,
    peer_id,
    public_key,
    sign_commit,
    sign_registration,
    sign_report,
)
from swarmgame_chain.wire import MAX_MESSAGES, Kind, dump, kind_of

log = logging.getLogger(__name__)
SCALE = 1_000_000
"""A reward of 1.0 as the contract's integer."""
REGISTRATION_LASTS = 24 * 3600.0
OVER = frozenset({"final", "rejected"})


@dataclass
class Sent:
    """A message and how far it is: `waiting` (not handed in yet), `queued`, `sent`, `final` or `rejected`."""

    id: str
    message: SignedMessage
    state: str = "waiting"
    reason: str = ""
    transaction: str = ""


@dataclass
class PeerOnChain:
    """What one peer says to the chain.

    Args:
        domain: the chain and the contract.
        identity: the libp2p key's 32 secret bytes; it proves the id, and signs the reports.
        gateway: the gateway's address, `http://host:port`.
        owner: the account that the peer belongs to; the identity's own by default.
        sealed: whether the swarm's reports are committed first.
        capacity: how many messages may wait here.
    """

    domain: Domain
    identity: bytes = field(repr=False)
    gateway: str
    owner: str = ""
    sealed: bool = False
    capacity: int = 1_000
    interval: float = 0.5
    dropped: int = 0
    problem: str = ""
    """Why nothing gets through at present; empty when it does."""
    on_over: Callable[[Sent], None] = lambda sent: None
    _line: dict[str, Sent] = field(default_factory=dict)
    _wake: asyncio.Event = field(default_factory=asyncio.Event)
    ended: Counter[tuple[str, str]] = field(default_factory=Counter)
    """How messages ended: (state, reason) → count."""

    @property
    def peer(self) -> str:
        """The peer id that the identity stands for."""
        return peer_id(public_key(self.identity))

    @property
    def unfinished(self) -> tuple[Sent, ...]:
        """The messages that are not over, oldest first."""
        return tuple(self._line.values())

    @property
    def waiting(self) -> int:
        """How many messages are not over."""
        return len(self._line)

    def register(self, *, now: float | None = None) -> Sent:
        """Signs a registration and puts it in line."""
        deadline = int((time.time() if now is None else now) + REGISTRATION_LASTS)
        return self._put(
            sign_registration(
                self.domain, self.identity, deadline=deadline, owner=self.owner or address_of(self.identity)
            )
        )

    def report(self, round: int, mean_reward: float, winners: tuple[str, ...] = ()) -> Sent:
        """Signs the report of a round and puts it in line; of a sealed swarm, its commit too.

        Args:
            mean_reward: the mean over this peer's own rollouts; kept on chain in millionths.
            winners: the peers whose groups were learned most from; at most 8 are named, this peer never.
        """
        others = tuple(dict.fromkeys(winner for winner in winners if winner != self.peer))[:8]
        scaled = round_half(mean_reward * SCALE)
        report = sign_report(self.domain, self.identity, peer=self.peer, round=round, reward=scaled, winners=others)
        if self.sealed:
            self._put(sign_commit(self.domain, self.identity, report))
        return self._put(report)

    async def run(self) -> None:
        """Hands in and asks until cancelled. Nothing that the gateway or the network does ends it."""
        waits = self.interval
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=10)) as session:
            while True:
                try:
                    await self.step(session)
                    waits, self.problem = self.interval, ""
                except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
                    self.problem = f"the gateway does not answer: {error or type(error).__name__}"
                    waits = min(2 * waits, 30.0)
                self._wake.clear()
                try:
                    async with asyncio.timeout(waits if self._line else None):
                        await self._wake.wait()
                except TimeoutError:
                    continue

    async def step(self, session: aiohttp.ClientSession) -> None:
        """Hands in what waits, and asks about what is on its way.

        Raises:
            aiohttp.ClientError, TimeoutError, ValueError: the gateway is away or answers nonsense; what was not said is
            said again.
        """
        # A report before the seal of the next one: a gateway that knew only the seal could end the round in which the
        # report must be opened.
        for kind in ("registrations", "reports", "commits"):
            await self._hand_in(session, kind)
        asked = [sent for sent in self._line.values() if sent.state != "waiting"][:MAX_MESSAGES]
        if asked:
            answers = await _post(session, f"{self.gateway}/v1/lookups", {"ids": [sent.id for sent in asked]})
            for sent, answer in zip(asked, answers, strict=True):
                self._last_seen(sent, answer)

    def _put(self, message: SignedMessage) -> Sent:
        sent = Sent(message_id(message, self.domain), message)
        if len(self._line) >= self.capacity:
            oldest = next((each for each in self._line.values() if not isinstance(each.message, Registration)), None)
            if oldest is not None:
                del self._line[oldest.id]
                self.dropped += 1
        self._line[sent.id] = sent
        self._wake.set()
        return sent

    async def _hand_in(self, session: aiohttp.ClientSession, kind: Kind) -> None:
        # With what is new goes all that is not over: a gateway that was restarted meanwhile remembers none of it, and
        # would carry the newest
        # report first, after which the contract takes no older one. What a gateway knows already it answers as a
        # look-up.
        line = [sent for sent in self._line.values() if kind_of(sent.message) == kind][:MAX_MESSAGES]
        if any(sent.state == "waiting" for sent in line):
            answers = await _post(session, f"{self.gateway}/v1/{kind}", [dump(sent.message) for sent in line])
            for sent, answer in zip(line, answers, strict=True):
                self._last_seen(sent, answer)

    def _last_seen(self, sent: Sent, answer: dict[str, str]) -> None:
        state = answer.get("state", "")
        if state in ("unknown", "dropped"):
            sent.state = "waiting"
            return
        sent.state, sent.reason, sent.transaction = state, answer.get("reason", ""), answer.get("transaction", "")
        if state == "rejected" and sent.reason == "TooManyRegistrations":
            sent.state = "waiting"
        elif state in OVER:
            self._line.pop(sent.id, None)
            self.ended[state, sent.reason] += 1
            if state == "rejected":
                log.warning("the chain does not take a message: %s, %s", kind_of(sent.message), sent.reason)
            self.on_over(sent)


async def _post(
    session: aiohttp.ClientSession, url: str, body: list[dict[str, object]] | dict[str, list[str]]
) -> list[dict[str, str]]:
    async with session.post(url, json=body) as response:
        if response.status not in (200, 202, 400):
            raise aiohttp.ClientError(f"HTTP status {response.status}")
        answer = json.loads(await response.content.read(4 << 20))
    messages = answer.get("messages") if isinstance(answer, dict) else None
    if not isinstance(messages, list) or len(messages) != len(body if isinstance(body, list) else body["ids"]):
        raise ValueError("the gateway's answer does not fit the question")
    return messages


def round_half(value: float) -> int:
    """The nearest integer; 0 for what is no number."""
    return round(value) if value == value and abs(value) < 2**200 else 0
