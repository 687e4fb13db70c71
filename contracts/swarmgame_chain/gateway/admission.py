"""Admission: which submitted messages enter the queue.

All of them come from untrusted senders. A registration must be signed by its own key and not be expired; a commit or a
report must be signed by the signer that the chain, or a registration on its way, names for its peer. A refused message
gets the contract's own error as its reason.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence, Set

from swarmgame_chain.errors import BadMessage, ChainUnreachable
from swarmgame_chain.gateway.queue import MessageQueue, MessageState, QueuedMessage
from swarmgame_chain.messages import TOO_EARLY, SignedMessage
from swarmgame_chain.messages.base import MAX_ROUNDS_AHEAD
from swarmgame_chain.reader import Coordinator, RoundClock, SwarmConfig

log = logging.getLogger(__name__)
MAX_SIGNERS = 100_000
"""Signers that are remembered."""
LOOKUPS_PER_MINUTE = 6_000
"""Peers whose signer is read from the chain: anyone may invent peers, and each costs the node a call. Messages signed
by a signer that is remembered cost none.
"""
LOOKUPS_PER_CLIENT = 600
"""Of these, for one address."""
MAX_CLIENTS = 4096


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
        self._registrations = _Allowance(registrations_per_minute, clock)
        self._lookups = _Allowance(LOOKUPS_PER_MINUTE, clock)
        self._lookups_of: dict[str, _Allowance] = {}
        self._clock = clock
        self._is_reported = False
        self._signers: dict[str, str] = {}
        self.on_early: Callable[[str, int], None] = lambda peer, round: None
        """Called with the peer and the round of a signed message that is too far ahead of the chain, or the last round
        that is not where that is less.
        """

    @property
    def proven(self) -> Set[str]:
        """The peers whose proof was read from the chain because they sent a message."""
        return self._signers.keys()

    async def submit(
        self, messages: Sequence[SignedMessage | BadMessage], swarm: SwarmConfig, clock: RoundClock, client: str = ""
    ) -> list[QueuedMessage | BadMessage]:
        """Return every message's entry, in order: queued, known from before, or rejected with the reason.

        Raises:
            ChainUnreachable: signers had to be read from the chain and the node does not answer, or too many had to be
                read in the last minute; nothing was added.
        """
        await self._fetch_signers(messages, client)
        return [
            message if isinstance(message, BadMessage) else self._submit(message, swarm, clock) for message in messages
        ]

    def _submit(self, message: SignedMessage, swarm: SwarmConfig, clock: RoundClock) -> QueuedMessage:
        entry = QueuedMessage(message.id(self._domain), message)
        known = self._queue.get(entry.id)
        if known is not None and not known.may_return:
            return known
        early = message.refusal(swarm, clock)
        reason = early if early not in ("", TOO_EARLY) else self._signature_refusal(message) or early
        finished = message.finished_round(swarm)
        if reason == TOO_EARLY and finished >= 0:
            # Whatever the round: an untrusted number must not count for ever.
            self.on_early(message.peer, min(finished, clock.round + MAX_ROUNDS_AHEAD))
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
        return "" if not message.proves_identity or self._registrations.take(1) else "TooManyRegistrations"

    def _signers_of(self, peer: str) -> set[str]:
        registration = self._queue.registration_of(peer)
        found = {self._signers.get(peer, "")} | ({registration.signer.lower()} if registration is not None else set())
        return found - {""}

    async def _fetch_signers(self, messages: Sequence[SignedMessage | BadMessage], client: str) -> None:
        missing: dict[str, None] = {}
        for message in messages:
            if isinstance(message, BadMessage) or message.proves_identity:
                continue
            if not message.is_signed(self._domain, self._signers_of(message.peer)):
                # The signer is unknown, or a later registration has changed it.
                missing[message.peer] = None
        if not missing:
            return
        if not (self._share_of(client).take(len(missing)) and self._lookups.take(len(missing))):
            if not self._is_reported:
                log.warning(
                    "messages name more than %d peers a minute whose signer is not known, or %d from one address; "
                    "those beyond are answered with 503 and may be sent again",
                    LOOKUPS_PER_MINUTE,
                    LOOKUPS_PER_CLIENT,
                )
            self._is_reported = True
            raise ChainUnreachable("too many messages of peers whose signer is not known; send them again later")
        if len(self._signers) > MAX_SIGNERS:
            self._signers.clear()
        for peer, state in zip(missing, await self._coordinator.peers(list(missing)), strict=True):
            if state.proven:
                self._signers[peer] = state.signer.lower()

    def _share_of(self, client: str) -> _Allowance:
        """Return what one address may use. The addresses that were seen last are remembered."""
        share = self._lookups_of.pop(client, None) or _Allowance(LOOKUPS_PER_CLIENT, self._clock)
        self._lookups_of[client] = share
        if len(self._lookups_of) > MAX_CLIENTS:
            del self._lookups_of[next(iter(self._lookups_of))]
        return share


class _Allowance:
    """A count a minute, all of which may be used at once."""

    def __init__(self, per_minute: int, clock: Callable[[], float]) -> None:
        self._rate = per_minute
        self._left = float(per_minute)
        self._updated = clock()
        self._clock = clock

    def take(self, count: int) -> bool:
        """Use up some of it; return False where less is left, and use nothing."""
        now = self._clock()
        self._left = min(float(self._rate), self._left + (now - self._updated) * self._rate / 60)
        self._updated = now
        if self._left < count:
            return False
        self._left -= count
        return True
