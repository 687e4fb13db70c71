"""The messages of one peer that are not over yet: what to submit, what to look up, and how messages ended.

Pure state: no clock, no network, no locks. It is bounded: the oldest message that is not a registration is dropped and
counted. Every message ends `final` or `rejected` with a reason, or is counted as dropped.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass

from swarmgame_chain.messages import MessageKind, Registration, SignedMessage
from swarmgame_chain.wire import MAX_MESSAGES

log = logging.getLogger(__name__)


@dataclass
class PendingMessage:
    """A message and how far it is: `waiting` (not submitted yet), `queued`, `sent`, `final` or `rejected`."""

    id: str
    message: SignedMessage
    state: str = "waiting"


class PendingMessages:
    """Messages in the order in which they were added.

    Args:
        capacity: how many may be pending.
    """

    def __init__(self, capacity: int = 1_000) -> None:
        self._capacity = capacity
        self._messages: dict[str, PendingMessage] = {}
        self.registered = False
        """Whether a registration is final."""
        self.final = self.rejected_count = self.dropped = 0
        self.rejected = ""
        """The reason of the last rejection."""

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
        """Return the messages of a kind to submit now, oldest first: all that are not over, if one of them is new.

        A gateway that was restarted remembers none of the older ones. It would carry the newest report first, after
        which the contract takes no older one. A gateway that knows a message answers with its state.
        """
        line = [each for each in self._messages.values() if type(each.message) is kind][:MAX_MESSAGES]
        return line if any(each.state == "waiting" for each in line) else []

    def in_transit(self) -> list[PendingMessage]:
        """Return the messages that the gateway has; their state is to be looked up."""
        return [each for each in self._messages.values() if each.state != "waiting"][:MAX_MESSAGES]

    def apply(self, pending: PendingMessage, answer: Mapping[str, str]) -> None:
        """Take in the gateway's answer for a message."""
        if pending.id not in self._messages:
            return
        state, reason = answer.get("state", ""), answer.get("reason", "")
        # A gateway that lost the message, or takes no more registrations now, gets it again.
        lost = state in ("unknown", "dropped") or reason == "TooManyRegistrations"
        pending.state = "waiting" if lost else state
        if pending.state not in ("final", "rejected"):
            return
        del self._messages[pending.id]
        if state == "final":
            self.final += 1
            self.registered |= isinstance(pending.message, Registration)
        else:
            self.rejected_count += 1
            self.rejected = reason
            log.warning("the chain does not take a message: %s, %s", type(pending.message).path, reason)
