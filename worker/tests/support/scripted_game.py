"""A game of one peer whose swarm is scripted: helpers for tests of the loop."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from toys import ToyData, ToyRewards, ToyTrainer

from swarmgame import (
    Contribution,
    FinishReason,
    GameState,
    Group,
    Prompt,
    Question,
    QuestionRef,
    Rewards,
    Rollout,
    Round,
)
from swarmgame.game.external_sampling import ExternalSamplingPolicy
from swarmgame.game.manager import GameManager, Progression
from swarmgame.game.protocol import Claim, ClosedBy, Collected, CollectPolicy, Member
from swarmgame.game.report import Observer, RoundReport
from swarmgame.seeds import derive_seed


class Scripted:
    """A CommunicationManager with scripted peers: `others(published)` returns what `collect` collects."""

    def __init__(
        self,
        others: Callable[[Contribution], Sequence[Contribution]] = lambda own: (),
        *,
        members: Sequence[Member] = (),
        peer: str = "me",
    ) -> None:
        self.peer = peer
        self.others = others
        self.members = tuple(members)
        self.published: list[tuple[Contribution, tuple[Claim, ...]]] = []
        self.policies: list[CollectPolicy] = []
        self.on_collect: Callable[[], None] = lambda: None

    def join(self, *, expect: Sequence[str] = (), at_least: int = 1, timeout_seconds: float = 120.0) -> None:
        """Nothing to do."""

    def membership(self) -> tuple[Member, ...]:
        return tuple(sorted((Member(self.peer, 0, 0), *self.members), key=lambda member: member.peer))

    def announce_progress(self, round: int, stage: int) -> None:
        """Nothing to do."""

    def publish(self, contribution: Contribution, claims: Sequence[Claim] = ()) -> None:
        self.published.append((contribution, tuple(claims)))

    def collect(
        self, round: int, stage: int, policy: CollectPolicy, *, stopped: Callable[[], bool] = lambda: False
    ) -> Collected:
        self.on_collect()
        self.policies.append(policy)
        received = tuple(sorted(self.others(self.published[-1][0]), key=lambda c: (c.round, c.peer)))
        names = tuple(member.peer for member in self.membership())
        closed = ClosedBy.QUORUM if len(names) > 1 else ClosedBy.ISOLATED
        return Collected(received, names, (), closed, {"accepted": len(received)}, seconds=0.0)

    def leave(self) -> None:
        """Nothing to close."""


class RecordingObserver(Observer):
    def __init__(self) -> None:
        self.reports: list[RoundReport] = []
        self.states: list[GameState] = []
        self.rewards: list[Rewards] = []
        self.began: list[int] = []

    def round_started(self, round: Round) -> None:
        self.began.append(round.number)

    def round_finished(self, report: RoundReport, state: GameState, rewards: Rewards) -> None:
        self.reports.append(report)
        self.states.append(state)
        self.rewards.append(rewards)


def manager(
    communication: Any, progression: Progression, **changes: Any
) -> tuple[GameManager, RecordingObserver, ToyTrainer]:
    observer, trainer = RecordingObserver(), changes.pop("trainer", None) or ToyTrainer()
    components = {
        "data": ToyData(),
        "rewards": ToyRewards(),
        "trainer": trainer,
        "communication": communication,
        "observers": [observer],
    } | changes
    return GameManager(progression, **components), observer, trainer


def remote(peer: str, round: int, *, stage: int = 0, count: int = 3) -> Contribution:
    """The contribution of an honest peer in stage 0: its own questions, answered right, wrong, right, wrong."""
    questions = [Question(QuestionRef("toy", "v1", derive_seed(peer, round, index), index)) for index in range(count)]
    resolved = [ToyData().resolve(question.reference) for question in questions]
    groups = []
    for question in resolved:
        assert question is not None
        right = int(question.answer)
        picks = (right, (right + 1) % 4, right, (right + 2) % 4)
        groups.append(
            Group(
                Prompt.from_question(question),
                tuple(Rollout(str(p), (p,), (math.log(0.25),), FinishReason.STOP) for p in picks),
            )
        )
    return Contribution(
        peer, round, stage, tuple(groups), {i.id: i.reference for i in resolved if i is not None}, tokenizer="digits"
    )


TWO = (Member("other", 0, 0),)
SHARE = Progression(max_rounds=1, sharing=ExternalSamplingPolicy(external_groups=8))
