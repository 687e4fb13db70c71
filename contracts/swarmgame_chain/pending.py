"""The messages of one peer that are not over yet: what to submit, what to look up, and how messages ended.

Pure state: no clock, no network, no locks. It is bounded: the oldest message that is not a registration is dropped and
counted. Every message ends `final` or `rejected` with a reason, or is counted as dropped.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass

from swarmgame_chain.messages import TOO_EARLY, MessageKind, Registration, SignedMessage
from swarmgame_chain.wire import MAX_MESSAGES

log = logging.getLogger(__name__)
LATER = frozenset({"TooManyRegistrations", "UnknownPeer", TOO_EARLY})
"""Refusals that may pass: the message waits and is submitted again."""

SIGNED_AGAIN = frozenset({"RegistrationExpired", "RegistrationTooLong", "RegistrationSuperseded"})
"""Refusals of a registration that a new one with a later deadline does not meet."""


@dataclass
class PendingMessage:
    """A message and how far it is: `waiting` (not submitted yet), `queued`, `sent`, `final` or `rejected`."""

    id: str
    message: SignedMessage
    state: str = "waiting"


def _has_round(pending: PendingMessage) -> bool:
    return pending.message.about_round >= 0


class PendingMessages:
    """Messages in the order in which they were added.

    Args:
        capacity: how many may be pending.
    """

    def __init__(self, capacity: int = 5_000) -> None:
        self._capacity = capacity
        self._messages: dict[str, PendingMessage] = {}
        self.registered = False
        """Whether a registration is final."""
        self.final = self.rejected_count = self.dropped = 0
        self.rejected = ""
        """The reason of the last rejection."""
        self.needs_registration = False
        """Whether the chain does not know the peer, and no registration is pending: it has to be signed again."""
        self._early: int | None = None
        """The first round that the gateway did not take yet."""

    def __len__(self) -> int:
        return len(self._messages)

    @property
    def messages(self) -> tuple[PendingMessage, ...]:
        return tuple(self._messages.values())

    def add(self, id: str, message: SignedMessage) -> None:
        """Add a message, and drop the oldest one where there is no room."""
        if len(self._messages) >= self._capacity:
            droppable = (each for each in self._messages.values() if not isinstance(each.message, Registration))
            oldest = next(droppable, None)
            if oldest is not None:
                del self._messages[oldest.id]
                self.dropped += 1
                if self.dropped == 1 or self.dropped % 100 == 0:
                    log.warning("%d messages to the chain were dropped: %d are pending", self.dropped, self._capacity)
        self._messages[id] = PendingMessage(id, message)

    def take_all(self) -> list[SignedMessage]:
        """Remove all messages and return them, oldest first."""
        taken = [each.message for each in self._messages.values()]
        self._messages.clear()
        return taken

    def to_submit(self, kind: MessageKind) -> list[PendingMessage]:
        """Return the messages of a kind to submit now, oldest first.

        While the gateway does not take a round yet, later rounds are kept back.
        """
        waiting = [each for each in self._messages.values() if each.state == "waiting"]
        if self._early is not None and all(
            each.message.about_round > self._early for each in waiting if _has_round(each)
        ):
            # The message that was to show when the gateway takes more was dropped.
            self._early = None
        due = (each for each in waiting if type(each.message) is kind)
        return [each for each in due if self._early is None or each.message.about_round <= self._early][:MAX_MESSAGES]

    def in_transit(self) -> list[PendingMessage]:
        """Return the messages that the gateway has; their state is to be looked up."""
        return [each for each in self._messages.values() if each.state != "waiting"][:MAX_MESSAGES]

    @property
    def over(self) -> int:
        """How many messages ended."""
        return self.final + self.rejected_count

    @property
    def waiting(self) -> int:
        """How many messages the gateway has not taken."""
        return sum(1 for each in self._messages.values() if each.state == "waiting")

    @property
    def _is_registering(self) -> bool:
        return any(isinstance(each.message, Registration) for each in self._messages.values())

    def apply(self, pending: PendingMessage, answer: Mapping[str, str]) -> None:
        """Take in the gateway's answer for a message."""
        if pending.id not in self._messages:
            return
        state, reason = answer.get("state", ""), answer.get("reason", "")
        round = pending.message.about_round
        if reason == TOO_EARLY:
            self._early = round if self._early is None else min(self._early, round)
        elif self._early is not None and round >= self._early:
            self._early = None
        # A gateway that lost the message, or does not take it now, gets it again.
        lost = state in ("unknown", "dropped") or reason in LATER
        pending.state = "waiting" if lost else state
        again = isinstance(pending.message, Registration) and reason in SIGNED_AGAIN
        if reason == "UnknownPeer" and not self._is_registering:
            self.needs_registration = True
        if pending.state not in ("final", "rejected"):
            return
        del self._messages[pending.id]
        if again:
            self.needs_registration |= not self._is_registering
            log.info("the registration was not taken (%s); a later one is needed", reason)
        elif state == "final":
            self.final += 1
            self.registered |= isinstance(pending.message, Registration)
        else:
            self.rejected_count += 1
            self.rejected = reason
            log.warning("the chain does not take a message: %s, %s", type(pending.message).path, reason)
