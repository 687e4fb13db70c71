"""The report of a round, and the observers that receive it.

`RoundReport` is one line of `metrics.jsonl`, one row of the table, one scrape of Prometheus. Observers do not
influence the game. Invariant: everything except `seconds`, `outcomes` and `bytes_*` is a function of seeds and
contributions, so a resumed run repeats it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any

from swarmgame.game.protocol import ClosedBy, Collected
from swarmgame.game.state import GameState, PeerId, Rewards, Round
from swarmgame.game.verification import VerifiedRollouts


class SkipCause(StrEnum):
    """Why a peer left out rounds.

    LATE: it entered after the game had begun. AWAY: the swarm went on while it was stopped. SLOW: the other peers
    closed stages without it, and got further ahead than `maxStalenessRounds` allows.
    """

    LATE = "late"
    AWAY = "away"
    SLOW = "slow"


@dataclass(frozen=True)
class Evaluation:
    """Results on held-out questions, without training: per environment and over all of them (`all`).

    Args:
        average: environment → mean reward over all rollouts (avg@k).
        passed: environment → share of questions with at least one rollout of full reward (pass@k).
        samples: k.
    """

    average: Mapping[str, float]
    passed: Mapping[str, float]
    samples: int


@dataclass(frozen=True)
class RoundReport:
    """One finished round of one peer.

    Args:
        round: its number.
        peer: author of the report.
        reward: mean reward of our own rollouts over all stages; NaN when none was scored.
        stage_rewards: the same by stage.
        environments: the same by environment.
        metrics: what `Trainer.train` returned.
        external: number of groups of other peers that were trained on, by author.
        members, missing: of the last stage, as in `Collected`.
        closed_by: of the last stage.
        tokens: number of ids that this peer sampled.
        policy_version: after training.
        seconds: wall time by phase: data, generate, exchange, listen, rewards, train, evaluate, checkpoint (all
            observers of the round before), round.
        outcomes: number of messages by outcome, in this round.
        counters: running totals of the RewardManager (breaches, scorer exceptions).
        evaluation: None when this round had none.
        weights: hash of the policy's weights after training; empty where it is not computed.
    """

    round: int
    peer: PeerId
    reward: float
    stage_rewards: tuple[float, ...]
    environments: Mapping[str, float]
    metrics: Mapping[str, float]
    external: Mapping[PeerId, int]
    members: tuple[PeerId, ...]
    missing: tuple[PeerId, ...]
    closed_by: ClosedBy
    tokens: int
    policy_version: int
    seconds: Mapping[str, float] = field(default_factory=dict)
    outcomes: Mapping[str, int] = field(default_factory=dict)
    counters: Mapping[str, int] = field(default_factory=dict)
    bytes_sent: int = 0
    bytes_received: int = 0
    evaluation: Evaluation | None = None
    weights: str = ""

    def as_json(self) -> dict[str, Any]:
        """Return the report as JSON-like values, with NaN as None."""
        return {name: _plain(value) for name, value in asdict(self).items()}


def _plain(value: Any) -> Any:
    if isinstance(value, float) and value != value:
        return None
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value


class Observer:
    """Hooks of the loop, each empty. An exception in a hook ends the run."""

    def game_started(self, first_round: int, max_rounds: int) -> None:
        """Before the first round of this process."""

    def rounds_skipped(self, first: int, count: int, cause: SkipCause) -> None:
        """This peer leaves out `count` rounds from `first` on."""

    def round_started(self, round: Round) -> None:
        """Membership and seeds are known; nothing has been generated."""

    def stage_closed(self, round: Round, stage: int, collected: Collected) -> None:
        """A stage of the round is over."""

    def stage_verified(self, state: GameState, collected: Collected, verified: VerifiedRollouts) -> None:
        """What was collected in a stage was compared with our own data; `state` is from before."""

    def round_finished(self, report: RoundReport, state: GameState, rewards: Rewards) -> None:
        """After training. Observers are called in order: metrics first, then the checkpoint."""

    def game_finished(self, rounds: int) -> None:
        """All rounds are finished, or a stop was requested."""
