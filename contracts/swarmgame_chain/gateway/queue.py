"""The gateway's queue: the messages that were submitted, and how each ended.

It is bounded: when it is full, the oldest waiting message of the peer that has the most is dropped and counted, since
the newest report is worth more than the oldest. At most one message per subject (a peer's registration, its report or
commit of a round) is on its way. A message is in exactly one state; `final`, `rejected` and `dropped` never change,
except that one that was dropped, or whose peer was unknown, may be submitted again. No clock and no network.
"""

from __future__ import annotations

import itertools
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

from swarmgame_chain.messages import KINDS, MessageKind, Registration, SignedMessage
from swarmgame_chain.reader import SwarmConfig

Subject = tuple[MessageKind, str, int]


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
        reason: the name of the contract's error, for a rejection.
        transaction: the hash of the transaction that carried it, if this gateway sent it.
        attempts: how many transactions or simulations did not take it.
        waited_in: the last round of the chain in which it had to wait, though its peer was registered.
        judged_at: the newest block when it was last decided that it has to wait.
        failures: in how many blocks the node failed on it, and not on others.
    """

    id: str
    message: SignedMessage
    state: MessageState = MessageState.QUEUED
    reason: str = ""
    transaction: str = ""
    attempts: int = 0
    waited_in: int = -1
    judged_at: str = ""
    failures: int = 0

    @property
    def kind(self) -> MessageKind:
        return type(self.message)

    @property
    def subject(self) -> Subject:
        """What it is about: two messages with one subject contradict each other."""
        return (self.kind, self.message.peer, self.message.about_round)

    @property
    def may_return(self) -> bool:
        """Whether it ended for a reason that may pass, so that it is taken when it is submitted again."""
        return self.state is MessageState.DROPPED or self.reason == "UnknownPeer"

    def view(self) -> dict[str, str]:
        """Return the JSON object for its sender."""
        shown = {"id": self.id, "state": str(self.state), "reason": self.reason, "transaction": self.transaction}
        return {key: value for key, value in shown.items() if value}


class MessageQueue:
    """Messages by id, and the waiting ones by kind, oldest first.

    Args:
        capacity: how many may wait or be on their way.
        remembered: how many that are over are still known.
    """

    def __init__(self, capacity: int = 10_000, remembered: int = 100_000) -> None:
        self._capacity = capacity
        self._remembered = remembered
        self._entries: dict[str, QueuedMessage] = {}
        self._subjects: dict[Subject, QueuedMessage] = {}
        self._waiting: dict[MessageKind, OrderedDict[str, QueuedMessage]] = {kind: OrderedDict() for kind in KINDS}
        self._held: dict[MessageKind, dict[str, OrderedDict[str, QueuedMessage]]] = {kind: {} for kind in KINDS}
        """The messages of each peer that are not over, oldest first."""
        self._over: OrderedDict[str, QueuedMessage] = OrderedDict()
        self.ended: dict[tuple[str, MessageState, str], int] = {}
        """How messages ended: (the kind's path, state, reason) → count."""

    def get(self, id: str) -> QueuedMessage | None:
        """Return a known message, whatever its state."""
        return self._entries.get(id) or self._over.get(id)

    def registration_of(self, peer: str) -> Registration | None:
        """Return the registration of a peer that is on its way."""
        entry = self._subjects.get((Registration, peer, -1))
        return entry.message if entry is not None and isinstance(entry.message, Registration) else None

    def waiting(self, kind: MessageKind) -> int:
        """Return how many messages of a kind wait for a transaction."""
        return len(self._waiting[kind])

    def newest_rounds(self, config: SwarmConfig) -> dict[str, int]:
        """Return the newest round that each peer has finished, by its messages on their way."""
        found: dict[str, int] = {}
        for entry in self._entries.values():
            round = entry.message.finished_round(config)
            if round > found.get(entry.message.peer, -1):
                found[entry.message.peer] = round
        return found

    def last_round(self, config: SwarmConfig, round: int) -> int | None:
        """Return the last round in which the contract takes all waiting messages; None where any round will do.

        A message that was examined in this round and has to wait for something else does not count, nor does one that
        is too late already.
        """
        rounds = (
            entry.message.last_round(config)
            for line in self._waiting.values()
            for entry in line.values()
            if entry.waited_in != round
        )
        return min((each for each in rounds if each is not None and each >= round), default=None)

    def rejections(self) -> dict[str, int]:
        """Return how many messages were rejected, by reason."""
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
        """Add a message. The same message twice is one entry.

        A registration with a later deadline replaces one that waits; any other message about a subject that is on its
        way is rejected.
        """
        known = self.get(entry.id)
        if known is not None and not known.may_return:
            return known
        rival = self._subjects.get(entry.subject)
        if rival is not None:
            if not (rival.state is MessageState.QUEUED and entry.message.replaces(rival.message)):
                self._over[entry.id] = entry
                self._end(entry, MessageState.REJECTED, entry.kind.repeated)
                return entry
            self.finish(rival, MessageState.REJECTED, entry.kind.repeated)
        if len(self._entries) >= self._capacity:
            self._drop_oldest()
        self._over.pop(entry.id, None)
        self._entries[entry.id] = entry
        self._subjects[entry.subject] = entry
        self._held[entry.kind].setdefault(entry.message.peer, OrderedDict())[entry.id] = entry
        self._waiting[entry.kind][entry.id] = entry
        return entry

    def take(self, kind: MessageKind, most: int, block: str = "", round: int = -1) -> list[QueuedMessage]:
        """Take the oldest waiting messages out of the line; the caller finishes them or gives them back.

        Args:
            block: the newest block's hash; messages that had to wait at this block are left out.
            round: the chain's round; messages of a later one that had to wait in this one are left out.
        """
        line = self._waiting[kind]
        due = (
            entry
            for entry in line.values()
            if not (block and entry.judged_at == block)
            and not (entry.waited_in == round and entry.message.about_round > round >= 0)
        )
        taken = list(itertools.islice(due, most))
        for entry in taken:
            del line[entry.id]
        return taken

    def give_back(self, entries: Iterable[QueuedMessage], *, first: bool = True) -> None:
        """Make messages wait again: at the head of the line, or at its end."""
        for entry in reversed(list(entries)) if first else entries:
            if entry.state in OVER:
                continue
            entry.state = MessageState.QUEUED
            self._waiting[entry.kind][entry.id] = entry
            if first:
                self._waiting[entry.kind].move_to_end(entry.id, last=False)

    def finish(self, entry: QueuedMessage, state: MessageState, reason: str = "", transaction: str = "") -> None:
        """End a message, once."""
        if entry.state in OVER:
            return
        if self._entries.pop(entry.id, None) is not None:
            peer, held = entry.message.peer, self._held[entry.kind]
            del held[peer][entry.id]
            if not held[peer]:
                del held[peer]
        if self._subjects.get(entry.subject) is entry:
            del self._subjects[entry.subject]
        self._waiting[entry.kind].pop(entry.id, None)
        self._over[entry.id] = entry
        self._end(entry, state, reason, transaction)

    def _end(self, entry: QueuedMessage, state: MessageState, reason: str, transaction: str = "") -> None:
        entry.state, entry.reason, entry.transaction = state, reason, transaction or entry.transaction
        key = (entry.kind.path, state, reason)
        self.ended[key] = self.ended.get(key, 0) + 1
        while len(self._over) > self._remembered:
            self._over.popitem(last=False)

    def _drop_oldest(self) -> None:
        # Reports are many and lose their worth; a registration is dropped only when nothing else waits.
        for kind in sorted(KINDS, key=lambda kind: kind.drop_order):
            if not self._waiting[kind]:
                continue
            held = self._held[kind]
            # Of the peer that has the most: one key must not push out the messages of others.
            most = sorted(held, key=lambda peer: len(held[peer]), reverse=True)
            waiting = (each for peer in most for each in held[peer].values() if each.id in self._waiting[kind])
            self.finish(next(waiting), MessageState.DROPPED, "QueueFull")
            return
