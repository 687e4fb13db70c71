"""The collector: waits until a stage closes, then hands out what others said.

Quorum is counted over live members, ourselves included (in a large pulling swarm over those who tell us, which is a
fresh sample of the members in every stage). While it waits it asks, ever more rarely, those who are still missing.
Invariants: a contribution is handed out once; the result is sorted by (round, peer); a swarm of one is called ISOLATED and
nothing else.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from statistics import median_low

from swarmgame.game.protocol import ClosedBy, Collected, CollectPolicy, Exchange
from swarmgame.game.state import Contribution, PeerId
from swarmgame.swarm.codec import Malformed, merge
from swarmgame.swarm.inbox import InboxEntry
from swarmgame.swarm.node import SwarmNode
from swarmgame.swarm.topology import Offer, choose, quorum_of

_FIRST_ASK, _ASK_GROWTH, _MOST_ASK = 1.0, 1.5, 10.0
_ASKED_AT_ONCE = 8
_GLANCE = 1.0
"""Membership changes by silence too, which sets no event."""
_GRACE = 0.25
"""Pull: share of the deadline, added to it, in which what was chosen may still be fetched."""
_MOST_GRACE = 10.0


class StageBarrier:
    """Waits and chooses, for one agent."""

    def __init__(self, agent: SwarmNode) -> None:
        self.agent = agent
        self._asked_before = False
        self._bytes = (0, 0)
        self._random = random.Random(agent.peer)

    async def collect(self, round: int, stage: int, policy: CollectPolicy, stop: asyncio.Event) -> Collected:
        """See `CommunicationManager.collect`; `stop` ends the wait."""
        agent = self.agent
        started = agent.clock.now()
        agent.policy = policy
        agent.progress(round, stage)
        closed_by = await self._wait(round, stage, policy, stop, started)
        now = agent.clock.now()
        expected = agent.expected(round, stage)
        agent.mailbox.close(round, stage)
        if policy.exchange is Exchange.GATHER:
            letters = [
                letter for letter in self._candidates(round, stage, policy) if letter.whole and not letter.failed
            ]
            parts = [(letter, sorted(letter.parts)) for letter in letters]
        else:
            grace = min(_MOST_GRACE, _GRACE * policy.deadline_seconds)
            parts = await self._pull(round, stage, policy, stop, max(started + policy.deadline_seconds, now) + grace)
        spoken = {peer for peer, letter in agent.mailbox.stage(round, stage).items() if self._ready(letter, policy)}
        contributions = [said for letter, positions in parts if (said := self._merged(letter, positions)) is not None]
        traffic = agent.transport.traffic
        sent, received = traffic.bytes_sent, traffic.bytes_received
        result = Collected(
            contributions=tuple(sorted(contributions, key=lambda said: (said.round, said.peer, said.stage))),
            members=tuple(sorted([*agent.members.others(now), agent.peer])),
            missing=tuple(peer for peer in expected if peer not in spoken),
            closed_by=closed_by,
            outcomes=agent.mailbox.take_outcomes(),
            seconds=agent.clock.now() - started,
            bytes_sent=sent - self._bytes[0],
            bytes_received=received - self._bytes[1],
        )
        self._bytes = (sent, received)
        return result

    # ── waiting
    async def _wait(
        self, round: int, stage: int, policy: CollectPolicy, stop: asyncio.Event, started: float
    ) -> ClosedBy:
        agent = self.agent
        deadline = started + policy.deadline_seconds
        # Pushes sent before we were known have missed us, so the first wait begins with a question.
        pause = _FIRST_ASK
        next_ask = started + (pause if self._asked_before else 0.0)
        while True:
            agent.changed.clear()
            now = agent.clock.now()
            expected = agent.expected(round, stage)
            letters = agent.mailbox.stage(round, stage)
            missing = [peer for peer in expected if peer not in letters or not self._ready(letters[peer], policy)]
            if not expected:
                return ClosedBy.ISOLATED
            if 1 + len(expected) - len(missing) >= quorum_of(policy, 1 + len(expected)):
                self._asked_before = True
                return ClosedBy.QUORUM
            if self._left_behind(round, policy, now):
                self._asked_before = True
                return ClosedBy.LAGGING
            if now >= deadline or stop.is_set():
                self._asked_before = True
                return ClosedBy.DEADLINE
            if now >= next_ask:
                self._ask(missing, letters, round, stage)
                if self._asked_before:
                    pause = min(_MOST_ASK, pause * _ASK_GROWTH)
                self._asked_before = True
                next_ask = now + pause
            await agent.clock.wait(agent.changed, min(deadline - now, next_ask - now, _GLANCE))

    def _left_behind(self, round: int, policy: CollectPolicy, now: float) -> bool:
        """Whether most others are past the point where they would take in, or still serve, words of this round."""
        rounds = [member.round for member in self.agent.members.members(now) if member.peer != self.agent.peer]
        return bool(rounds) and median_low(rounds) > round + policy.max_lag

    def _ask(self, missing: Sequence[PeerId], letters: dict[PeerId, InboxEntry], round: int, stage: int) -> None:
        agent = self.agent
        chosen = missing if len(missing) <= _ASKED_AT_ONCE else self._random.sample(list(missing), _ASKED_AT_ONCE)
        for peer in chosen:
            if peer not in letters:
                agent.ask(peer, round, stage)
            elif not letters[peer].failed:
                agent.spawn(agent.open(letters[peer]))

    @staticmethod
    def _ready(letter: InboxEntry, policy: CollectPolicy) -> bool:
        if letter.failed or letter.taken:
            return not letter.failed
        return letter.whole if policy.exchange is Exchange.GATHER else letter.entries is not None

    # ── choosing
    def _candidates(self, round: int, stage: int, policy: CollectPolicy) -> list[InboxEntry]:
        mailbox = self.agent.mailbox
        now = [letter for letter in mailbox.stage(round, stage).values() if not letter.taken]
        late = mailbox.earlier(round, policy.max_staleness)
        new = [
            letter
            for letter in late
            if (letter.announcement.round, letter.announcement.stage, letter.announcement.peer) not in policy.collected
        ]
        return [*now, *new]

    async def _pull(
        self, round: int, stage: int, policy: CollectPolicy, stop: asyncio.Event, until: float
    ) -> list[tuple[InboxEntry, list[int]]]:
        """Fetches what is chosen; where that fails, the next best, until enough is here or the time is over."""
        agent = self.agent
        letters = {}
        offers = []
        for letter in self._candidates(round, stage, policy):
            if letter.entries is not None and not letter.failed:
                said = letter.announcement
                letter.taken = True
                letters[said.peer, said.round, said.stage] = letter
                offers += [
                    Offer(said.peer, said.round, said.stage, at, entry) for at, entry in enumerate(letter.entries)
                ]
        taken: list[Offer] = []
        tried: set[Offer] = set()
        while chosen := choose([offer for offer in offers if offer not in tried], policy, taken):
            tried.update(chosen)
            fetches = {
                asyncio.ensure_future(agent.fetch(letters[offer.peer, offer.round, offer.stage], offer.position)): offer
                for offer in chosen
            }
            pending = set(fetches)
            while pending and not stop.is_set() and agent.clock.now() < until:
                agent.changed.clear()
                for fetch in pending:
                    fetch.add_done_callback(lambda _: agent.changed.set())
                await agent.clock.wait(agent.changed, until - agent.clock.now())
                pending = {fetch for fetch in pending if not fetch.done()}
            for fetch in pending:
                fetch.cancel()
            await asyncio.gather(*fetches, return_exceptions=True)
            taken += [offer for fetch, offer in fetches.items() if not fetch.cancelled() and fetch.result()]
            if pending:
                break
        positions: dict[tuple[PeerId, int, int], list[int]] = {}
        for offer in taken:
            positions.setdefault((offer.peer, offer.round, offer.stage), []).append(offer.position)
        return [(letters[key], sorted(found)) for key, found in positions.items()]

    def _merged(self, letter: InboxEntry, positions: Sequence[int]) -> Contribution | None:
        """The fetched parts of a letter as one contribution; the letter is handed out by this."""
        letter.taken = True
        try:
            merged = merge([letter.parts[position] for position in positions])
        except Malformed as error:
            self.agent.outcomes[error.reason] += 1
            letter.failed = error.reason
            return None
        letter.parts.clear()
        return merged
