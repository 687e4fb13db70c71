"""The gateway's door-keeper: which messages are worth a place in the line.

Everything here came from strangers. A registration must be signed by its own key and not be late; a commit or a report
must be signed by the signer that the chain, or a registration on its way, names for its peer. Invariant: nothing enters
the queue unsigned, and what is turned away gets the contract's own word for the reason.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence, Set

from swarmgame_chain.errors import BadMessage
from swarmgame_chain.gateway.decisions import MAX_ROUNDS_AHEAD
from swarmgame_chain.gateway.queue import MessageQueue, MessageState, QueuedMessage
from swarmgame_chain.messages import Commit, Registration, SignedMessage, message_id, proves, recover
from swarmgame_chain.reader import Coordinator, RoundClock, SwarmConfig

KNOWN_SIGNERS = 100_000


class Admission:
    """Checks messages and puts them in line.

    Args:
        registrations_per_minute: how many registrations may come in; more are turned away by name and may come again.
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
        self._seen = clock()
        self._clock = clock
        self._signers: dict[str, str] = {}

    @property
    def proven(self) -> Set[str]:
        """The peers whose proof was looked up on chain, for a message of theirs."""
        return self._signers.keys()

    async def take(
        self, messages: Sequence[SignedMessage | BadMessage], swarm: SwarmConfig, clock: RoundClock
    ) -> list[QueuedMessage | BadMessage]:
        """Every message's entry, in order: waiting, known from before, or rejected with the reason.

        Raises:
            ChainUnreachable: signers had to be looked up and the chain does not answer; nothing was taken.
        """
        await self._look_up(messages)
        return [
            message if isinstance(message, BadMessage) else self._take(message, swarm, clock) for message in messages
        ]

    def _take(self, message: SignedMessage, swarm: SwarmConfig, clock: RoundClock) -> QueuedMessage:
        entry = QueuedMessage(message_id(message, self._domain), message)
        known = self._queue.get(entry.id)
        if known is not None and known.state is not MessageState.DROPPED:
            return known
        reason = (
            self._registration(message, clock)
            if isinstance(message, Registration)
            else self._said(message, swarm, clock)
        )
        if reason:
            entry.state, entry.reason = MessageState.REJECTED, reason
            return entry
        return self._queue.add(entry)

    def _registration(self, message: Registration, clock: RoundClock) -> str:
        if int(message.owner, 16) == 0 or int(message.signer, 16) == 0:
            return "InvalidOwner"
        if message.deadline < clock.now:
            return "RegistrationExpired"
        if not proves(message, self._domain):
            return "InvalidSignature"
        now = self._clock()
        self._allowance = min(float(self._rate), self._allowance + (now - self._seen) * self._rate / 60)
        self._seen = now
        if self._allowance < 1:
            return "TooManyRegistrations"
        self._allowance -= 1
        return ""

    def _said(self, message: SignedMessage, swarm: SwarmConfig, clock: RoundClock) -> str:
        assert not isinstance(message, Registration)
        if isinstance(message, Commit) and not swarm.sealed_reports:
            return "NotSealed"
        if message.round > clock.round + MAX_ROUNDS_AHEAD:
            return "InvalidRoundNumber"
        signers = self._signers_of(message.peer)
        if not signers:
            return "UnknownPeer"
        signer = recover(message.digest(self._domain), message.signature)
        return "" if signer is not None and signer.lower() in signers else "InvalidSignature"

    def _signers_of(self, peer: str) -> set[str]:
        registration = self._queue.registration_of(peer)
        found = {self._signers.get(peer, "")} | ({registration.signer.lower()} if registration is not None else set())
        return found - {""}

    async def _look_up(self, messages: Sequence[SignedMessage | BadMessage]) -> None:
        wanted: dict[str, None] = {}
        for message in messages:
            if isinstance(message, BadMessage | Registration):
                continue
            signer = recover(message.digest(self._domain), message.signature)
            if signer is None or signer.lower() not in self._signers_of(message.peer):
                # Unknown, or changed since: a later registration names another signer.
                wanted[message.peer] = None
        if not wanted:
            return
        if len(self._signers) > KNOWN_SIGNERS:
            self._signers.clear()
        for peer, state in zip(wanted, await self._coordinator.peers(list(wanted)), strict=True):
            if state.proven:
                self._signers[peer] = state.signer.lower()
