"""What was handed in, and how it ended.

Bounded: when it is full, the oldest waiting message is dropped and counted, for the newest report is worth more than
the oldest. A second message for the same thing (a peer's registration, its report or commit of a round) never stands
beside the first. Pure: no clock, no network. Invariant: an entry is in exactly one state, and `final`, `rejected` and
`dropped` are for ever.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

from swarmgame_chain.messages import Registration, Report, SignedMessage
from swarmgame_chain.wire import Kind, kind_of


class MessageState(StrEnum):
    """How far a message is."""

    QUEUED = "queued"
    SENT = "sent"
    FINAL = "final"
    REJECTED = "rejected"
    DROPPED = "dropped"


OVER = frozenset({MessageState.FINAL, MessageState.REJECTED, MessageState.DROPPED})


@dataclass(eq=False)
class QueuedMessage:
    """A message on its way.

    Args:
        id: the message's.
        state: how far it is.
        reason: the contract's word for a rejection.
        transaction: the one that carried it, when we did.
        attempts: how often it went into a transaction, or a rehearsal, that did not take it.
        waited_in: the chain's last round in which it was found to have to wait.
    """

    id: str
    message: SignedMessage
    state: MessageState = MessageState.QUEUED
    reason: str = ""
    transaction: str = ""
    attempts: int = 0
    waited_in: int = -1

    @property
    def kind(self) -> Kind:
        return kind_of(self.message)

    @property
    def subject(self) -> tuple[str, str, int]:
        """What it is about: two messages with one subject contradict each other."""
        return (self.kind, self.message.peer, -1 if isinstance(self.message, Registration) else self.message.round)

    def view(self) -> dict[str, str]:
        """What its sender may know."""
        shown = {"id": self.id, "state": str(self.state), "reason": self.reason, "transaction": self.transaction}
        return {key: value for key, value in shown.items() if value}


class MessageQueue:
    """Messages by id, and those that wait, by kind, oldest first.

    Args:
        capacity: how many may wait or be on their way.
        remembered: how many that are over are still known.
    """

    def __init__(self, capacity: int = 10_000, remembered: int = 100_000) -> None:
        self._capacity = capacity
        self._remembered = remembered
        self._entries: dict[str, QueuedMessage] = {}
        self._subjects: dict[tuple[str, str, int], QueuedMessage] = {}
        self._waiting: dict[Kind, OrderedDict[str, QueuedMessage]] = {
            "registrations": OrderedDict(),
            "commits": OrderedDict(),
            "reports": OrderedDict(),
        }
        self._over: OrderedDict[str, QueuedMessage] = OrderedDict()
        self.ended: dict[tuple[Kind, MessageState, str], int] = {}

    def get(self, id: str) -> QueuedMessage | None:
        """A message that is known, whatever its state."""
        return self._entries.get(id) or self._over.get(id)

    def about(self, subject: tuple[str, str, int]) -> QueuedMessage | None:
        """The message that is on its way for this subject."""
        return self._subjects.get(subject)

    def registration_of(self, peer: str) -> Registration | None:
        """The registration of a peer that is on its way."""
        entry = self._subjects.get(("registrations", peer, -1))
        return entry.message if entry is not None and isinstance(entry.message, Registration) else None

    def waiting(self, kind: Kind) -> int:
        """How many messages of a kind wait for a transaction."""
        return len(self._waiting[kind])

    def ahead_of(self, round: int) -> frozenset[str]:
        """The peers that have a message waiting that is of a later round than this."""
        said = (entry.message for kind in ("commits", "reports") for entry in self._waiting[kind].values())
        return frozenset(
            message.peer for message in said if not isinstance(message, Registration) and message.round > round
        )

    def unsent_reports(self) -> dict[str, set[int]]:
        """The rounds of each peer's reports that no transaction carries yet."""
        found: dict[str, set[int]] = {}
        for entry in self._entries.values():
            if entry.state is MessageState.QUEUED and isinstance(entry.message, Report):
                found.setdefault(entry.message.peer, set()).add(entry.message.round)
        return found

    def has_bound_to(self, round: int) -> bool:
        """Whether a message waits that a sealed swarm takes in this round alone, its commit or the report of the round
        before, and that nothing but its turn keeps: what was looked at in this round and has to wait for something else
        does not count."""
        lines: tuple[tuple[Kind, int], ...] = (("commits", round), ("reports", round - 1))
        return any(
            entry.message.round == said and entry.waited_in != round
            for kind, said in lines
            for entry in self._waiting[kind].values()
            if not isinstance(entry.message, Registration)
        )

    def rejections(self) -> dict[str, int]:
        """How many messages were rejected, by the contract's word for it."""
        found: dict[str, int] = {}
        for (_, state, reason), count in self.ended.items():
            if state is MessageState.REJECTED:
                found[reason] = found.get(reason, 0) + count
        return found

    @property
    def on_their_way(self) -> int:
        """How many messages are not over."""
        return len(self._entries)

    def add(self, entry: QueuedMessage) -> QueuedMessage:
        """Puts a message in line. The same message twice is one entry.

        A registration with a later deadline replaces one that waits; anything else about a subject that is on its way
        is rejected.
        """
        known = self.get(entry.id)
        if known is not None and known.state is not MessageState.DROPPED:
            return known
        rival = self._subjects.get(entry.subject)
        if rival is not None:
            newer = isinstance(entry.message, Registration) and isinstance(rival.message, Registration)
            if not (newer and rival.state is MessageState.QUEUED and _deadline(entry) > _deadline(rival)):
                self._over[entry.id] = entry
                self._end(entry, MessageState.REJECTED, _REPEATED[entry.kind])
                return entry
            self.finish(rival, MessageState.REJECTED, _REPEATED[entry.kind])
        if len(self._entries) >= self._capacity:
            self._drop_oldest()
        self._over.pop(entry.id, None)
        self._entries[entry.id] = entry
        self._subjects[entry.subject] = entry
        self._waiting[entry.kind][entry.id] = entry
        return entry

    def take(self, kind: Kind, most: int) -> list[QueuedMessage]:
        """The oldest waiting messages; they wait no longer, and whoever took them finishes them or gives them back."""
        line = self._waiting[kind]
        return [line.popitem(last=False)[1] for _ in range(min(most, len(line)))]

    def give_back(self, entries: Iterable[QueuedMessage], *, first: bool = True) -> None:
        """Lets messages wait again: at the head of the line, or at its end."""
        for entry in reversed(list(entries)) if first else entries:
            if entry.state in OVER:
                continue
            entry.state = MessageState.QUEUED
            self._waiting[entry.kind][entry.id] = entry
            if first:
                self._waiting[entry.kind].move_to_end(entry.id, last=False)

    def finish(self, entry: QueuedMessage, state: MessageState, reason: str = "", transaction: str = "") -> None:
        """Ends a message, once."""
        if entry.state in OVER:
            return
        self._entries.pop(entry.id, None)
        if self._subjects.get(entry.subject) is entry:
            del self._subjects[entry.subject]
        self._waiting[entry.kind].pop(entry.id, None)
        self._over[entry.id] = entry
        self._end(entry, state, reason, transaction)

    def _end(self, entry: QueuedMessage, state: MessageState, reason: str, transaction: str = "") -> None:
        entry.state, entry.reason, entry.transaction = state, reason, transaction or entry.transaction
        key = (entry.kind, state, reason)
        self.ended[key] = self.ended.get(key, 0) + 1
        while len(self._over) > self._remembered:
            self._over.popitem(last=False)

    def _drop_oldest(self) -> None:
        # Reports are many and lose their worth; a registration is dropped only when nothing else waits.
        for kind in ("reports", "commits", "registrations"):
            line = self._waiting[kind]
            if line:
                self.finish(next(iter(line.values())), MessageState.DROPPED, "QueueFull")
                return


_REPEATED: dict[Kind, str] = {
    "registrations": "RegistrationSuperseded",
    "commits": "AlreadySealed",
    "reports": "RewardAlreadySubmitted",
}


def _deadline(entry: QueuedMessage) -> int:
    return entry.message.deadline if isinstance(entry.message, Registration) else 0
