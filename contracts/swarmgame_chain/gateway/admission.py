"""Admission: which submitted messages enter the queue.

All of them come from untrusted senders. A registration must be signed by its own key and not be expired; a commit or a
report must be signed by the signer that the chain, or a registration on its way, names for its peer. A refused message
gets the contract's own error as its reason.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence, Set

from swarmgame_chain.errors import BadMessage
from swarmgame_chain.gateway.queue import MessageQueue, MessageState, QueuedMessage
from swarmgame_chain.messages import SignedMessage
from swarmgame_chain.reader import Coordinator, RoundClock, SwarmConfig

MAX_SIGNERS = 100_000
"""Signers that are remembered."""


class Admission:
    """Checks messages and adds them to the queue.

    Args:
        registrations_per_minute: how many messages of unknown peers are taken; more are refused by name and may be
            submitted again.
    """

    def __init__(
        self,
        coordinator: Coordinator,
        queue: MessageQueue,
        registrations_per_minute: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._coordinator = coordinator
        self._domain = coordinator.domain
        self._queue = queue
        self._rate = registrations_per_minute
        self._allowance = float(registrations_per_minute)
        self._allowance_updated = clock()
        self._clock = clock
        self._signers: dict[str, str] = {}

    @property
    def proven(self) -> Set[str]:
        """The peers whose proof was read from the chain because they sent a message."""
        return self._signers.keys()

    async def submit(
        self, messages: Sequence[SignedMessage | BadMessage], swarm: SwarmConfig, clock: RoundClock
    ) -> list[QueuedMessage | BadMessage]:
        """Return every message's entry, in order: queued, known from before, or rejected with the reason.

        Raises:
            ChainUnreachable: signers had to be read from the chain and the node does not answer; nothing was added.
        """
        await self._fetch_signers(messages)
        return [
            message if isinstance(message, BadMessage) else self._submit(message, swarm, clock) for message in messages
        ]

    def _submit(self, message: SignedMessage, swarm: SwarmConfig, clock: RoundClock) -> QueuedMessage:
        entry = QueuedMessage(message.id(self._domain), message)
        known = self._queue.get(entry.id)
        if known is not None and known.state is not MessageState.DROPPED:
            return known
        reason = message.refusal(swarm, clock) or self._signature_refusal(message)
        if reason:
            entry.state, entry.reason = MessageState.REJECTED, reason
            return entry
        return self._queue.add(entry)

    def _signature_refusal(self, message: SignedMessage) -> str:
        signers = self._signers_of(message.peer)
        if not message.proves_identity and not signers:
            return "UnknownPeer"
        if not message.is_signed(self._domain, signers):
            return "InvalidSignature"
        return "" if not message.proves_identity or self._is_within_rate() else "TooManyRegistrations"

    def _is_within_rate(self) -> bool:
        now = self._clock()
        earned = (now - self._allowance_updated) * self._rate / 60
        self._allowance = min(float(self._rate), self._allowance + earned)
        self._allowance_updated = now
        if self._allowance < 1:
            return False
        self._allowance -= 1
        return True

    def _signers_of(self, peer: str) -> set[str]:
        registration = self._queue.registration_of(peer)
        found = {self._signers.get(peer, "")} | ({registration.signer.lower()} if registration is not None else set())
        return found - {""}

    async def _fetch_signers(self, messages: Sequence[SignedMessage | BadMessage]) -> None:
        missing: dict[str, None] = {}
        for message in messages:
            if isinstance(message, BadMessage) or message.proves_identity:
                continue
            if not message.is_signed(self._domain, self._signers_of(message.peer)):
                # The signer is unknown, or a later registration has changed it.
                missing[message.peer] = None
        if not missing:
            return
        if len(self._signers) > MAX_SIGNERS:
            self._signers.clear()
        for peer, state in zip(missing, await self._coordinator.peers(list(missing)), strict=True):
            if state.proven:
                self._signers[peer] = state.signer.lower()
