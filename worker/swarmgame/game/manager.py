"""GameManager: the loop over rounds and stages.

A round is: stages (make prompts, generate, publish, collect and verify), then rewards, the selection of other peers'
groups, one call of `Trainer.train`, and a report to the observers. The loop uses no tensor, socket, Kubernetes object
or contract. Invariants: a round is trained on completely or not at all, so a stop in the middle of one loses no
training; all choices derive from seeds and contributions; an exception of a component ends the game.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum

from swarmgame.game.author_records import DOUBT, DOUBTFUL_ROUNDS
from swarmgame.game.collected_log import CollectedLog
from swarmgame.game.components import DataManager, RewardManager, Trainer
from swarmgame.game.environment import Episodes
from swarmgame.game.evaluation import Evaluation, evaluation_of
from swarmgame.game.external_sampling import ExternalSamplingPolicy, has_nonzero_advantage, mean_reward, select_external
from swarmgame.game.present_round import present_round
from swarmgame.game.protocol import Claim, ClosedBy, CollectPolicy, CommunicationManager, Exchange
from swarmgame.game.report import Observer, RoundReport, SkipCause, own_rollouts
from swarmgame.game.reward_checks import checked_rewards, name_of, require_scores
from swarmgame.game.roles import RoleManager
from swarmgame.game.round_stats import RoundStats
from swarmgame.game.sharing_records import SharingRecords
from swarmgame.game.state import (
    Contribution,
    GameState,
    GroupKey,
    PeerId,
    Prompt,
    Question,
    Rewards,
    Round,
    Sampling,
)
from swarmgame.game.trainer_checks import checked_groups, checked_metrics
from swarmgame.game.verification import RolloutVerifier
from swarmgame.seeds import derive_seed

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Progression:
    """The settings of the loop.

    Args:
        max_rounds, stages: length of the game, and of a round.
        seed: of the game; every other seed derives from it.
        exchange: GATHER collects every contribution, PULL only the groups that will be trained on.
        quorum, stage_deadline_seconds: when a stage closes.
        sharing: which groups of other peers are trained on.
        single_peer: the game has one peer by design, so isolation is normal.
        stop_when_isolated: end, resumable, when no other peer is live.
        evaluate_every, evaluation_questions: held-out evaluation every so many rounds, before the first update and
            after the last round; 0 means never.
        evaluation_sampling: an evaluation's second pass, for pass@k; None means none.
    """

    max_rounds: int
    stages: int = 1
    seed: int = 0
    exchange: Exchange = Exchange.PULL
    quorum: float = 0.67
    stage_deadline_seconds: float = 120.0
    sharing: ExternalSamplingPolicy = field(default_factory=ExternalSamplingPolicy)
    single_peer: bool = False
    stop_when_isolated: bool = False
    evaluate_every: int = 0
    evaluation_questions: int = 64
    evaluation_sampling: Sampling | None = None


class RunResult(StrEnum):
    """How a game ended for this peer."""

    FINISHED = "finished"
    STOPPED = "stopped"
    ISOLATED = "isolated"


class GameManager:
    """Runs a game for one peer. Every rank of a peer runs one, in lockstep."""

    def __init__(
        self,
        progression: Progression,
        *,
        data: DataManager,
        rewards: RewardManager,
        trainer: Trainer,
        communication: CommunicationManager,
        roles: RoleManager | None = None,
        collected_log: CollectedLog | None = None,
        sharing_records: SharingRecords | None = None,
        episodes: Episodes | None = None,
        observers: Sequence[Observer] = (),
        stopped: Callable[[], bool] = lambda: False,
        weights_hash: Callable[[], str] = lambda: "",
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.progression = progression
        self.data = data
        self.rewards = rewards
        self.trainer = trainer
        self.communication = communication
        self.roles = roles or RoleManager()
        self.collected_log = collected_log or CollectedLog(progression.sharing.max_staleness)
        self._records = sharing_records or SharingRecords(progression.sharing.max_staleness)
        self.observers = tuple(observers)
        self.stopped = stopped
        self._weights_hash = weights_hash
        self._clock = clock
        self._episodes = episodes
        self._verifier = RolloutVerifier(
            data,
            trainer,
            progression.exchange,
            self._records.seen,
            episodes,
            seed=progression.seed,
            roles=self.roles,
        )
        self._was_isolated = False
        self._observed_seconds = 0.0
        self._generates_ahead = trainer.generates_ahead and data.knows_next_round
        self._evaluates_first = False

    # ── the game
    def run(self, first_round: int | None = None) -> RunResult:
        """Run until the last round, a stop request, or (with `stop_when_isolated`) until no other peer is live.

        Args:
            first_round: the next round of a checkpoint; None for a new peer, which begins at the swarm's round.
        """
        number = self._present_round(0) if first_round is None else first_round
        self._evaluates_first = first_round is None and self.progression.evaluate_every > 0
        if self.trainer.generates_ahead and not self._generates_ahead:
            logger.warning(
                "%s knows a round's questions only after the round before: nothing is generated ahead",
                type(self.data).__name__,
            )
        for observer in self.observers:
            observer.game_started(number, self.progression.max_rounds)
        if first_round is None and number:
            self._skip(0, number, SkipCause.LATE)
        cause = SkipCause.SLOW if first_round is None else SkipCause.AWAY
        ending = RunResult.FINISHED
        while number < self.progression.max_rounds:
            number = self._catch_up(number, cause)
            cause = SkipCause.SLOW
            if self.stopped():
                ending = RunResult.STOPPED
                break
            collected = self.collected_log.state_dict()
            closed_by = self._run_round(number)
            if closed_by is None:  # the round is played again after a resume, with the same contributions
                self.collected_log.load_state_dict(collected)
                ending = RunResult.STOPPED
                break
            number += 1
            if self._update_isolated(closed_by) and self.progression.stop_when_isolated:
                ending = RunResult.ISOLATED
                break
        for observer in self.observers:
            observer.game_finished(number)
        return ending

    def _present_round(self, default: int, *, to_enter: bool = False) -> int:
        """Return the round that half of the counted weight has reached, at most the game's last one."""
        present = present_round(self.communication.membership(), self.communication.peer, to_enter=to_enter)
        return default if present is None else min(present, self.progression.max_rounds - 1)

    def _catch_up(self, number: int, cause: SkipCause) -> int:
        """Skip rounds that the other peers have left behind."""
        if self._present_round(number) - number <= max(1, self.progression.sharing.max_staleness):
            return number
        present = self._present_round(number, to_enter=True)
        logger.warning("the swarm is at round %d, this peer at %d: skipping ahead", present, number)
        self._skip(number, present, cause)
        return present

    def _skip(self, first: int, until: int, cause: SkipCause) -> None:
        for observer in self.observers:
            observer.rounds_skipped(first, until - first, cause)

    def _update_isolated(self, closed_by: ClosedBy) -> bool:
        isolated = closed_by is ClosedBy.ISOLATED and not self.progression.single_peer
        if isolated and not self._was_isolated:
            logger.error("this peer is alone: no other member of the swarm is live")
        if self._was_isolated and not isolated:
            logger.warning("this peer is no longer alone")
        self._was_isolated = isolated
        return isolated

    # ── a round
    def _run_round(self, number: int) -> ClosedBy | None:
        """Run one round. Return None when a stop request ended it early: nothing was trained."""
        began = self._clock()
        stats = RoundStats(self._clock)
        members = self.communication.membership()
        round = self._round(number, tuple(member.peer for member in members if member.weight))
        stats.outcomes["role-without-taker"] = len(self.roles.without_taker(round))
        for observer in self.observers:
            observer.round_started(round)
        with stats.timed("evaluate"):
            first_evaluation = self._evaluate(number) if self._evaluates_first else None
        with stats.timed("data"):
            state = GameState.begin(round, self.data.round_data(round))
        for stage in range(round.stages):
            state, prompts = self._run_stage(state, stage, stats)
            if self.stopped():
                return None
            collected = self.communication.collect(
                number, stage, self._collect_policy(round, stage), stopped=self.stopped
            )
            if self.stopped():
                return None
            self.collected_log.record(number, stage, collected.delivered)
            for late in collected.contributions:
                self.collected_log.record(late.round, late.stage, [late.peer])
            with stats.timed("listen"):
                verified = self._verifier.verify(state, collected.contributions, prompts, collected.arrivals)
            for observer in self.observers:
                observer.stage_verified(state, collected, verified)
            self.collected_log.record_invalid(number, verified.invalid)
            state = verified.state
            stats.add_stage(collected, verified)
            for observer in self.observers:
                observer.stage_closed(round, stage, collected)
        with stats.timed("rewards"):
            rewards = self._score(state)
            require_scores(rewards, state, name_of(self.rewards))
            self.rewards.round_scored(state)
            stats.leave_out(self._records.authors.doubtful(number), paused=self._records.drift.paused)
            seed = derive_seed(round.peer_seed, "external")
            state = state.with_external(
                select_external(stats.trainable, rewards, self.progression.sharing, round=number, seed=seed)
            )
            self._records.drift.add_rewards(rewards[key] for key in state.external)
        with stats.timed("train"):
            metrics = checked_metrics(self.trainer.train(state, rewards), type(self.trainer).__name__)
            uses = self.trainer.remote_uses()
        stats.add_update(uses)
        for peer in sorted(self._records.authors.record(number, uses)):
            logger.warning("groups of peer %s are not used for %d rounds: %s", peer, DOUBTFUL_ROUNDS, DOUBT)
        self.data.round_finished(state, rewards)
        with stats.timed("evaluate"):
            evaluation = self._evaluate(number) if self._evaluates_after(number) else None
        if evaluation is not None and (change := self._records.drift.add_evaluation(evaluation)):
            logger.warning("%s", change)
        finished = self._clock()
        stats.seconds["checkpoint"] = self._observed_seconds
        if self._episodes is not None:
            stats.seconds["environment"] = self._episodes.take_seconds()
        stats.seconds["round"] = finished - began
        report = replace(
            self._report(state, rewards, metrics, stats), evaluation=evaluation, first_evaluation=first_evaluation
        )
        self._evaluates_first = False
        for observer in self.observers:
            observer.round_finished(report, state, rewards)
        self._observed_seconds = self._clock() - finished
        return report.closed_by

    def _round(self, number: int, members: tuple[PeerId, ...], *, evaluation: bool = False) -> Round:
        seed, stages = self.progression.seed, self.progression.stages
        return self.roles.round(seed, stages, self.communication.peer, number, members, evaluation=evaluation)

    def _run_stage(self, state: GameState, stage: int, stats: RoundStats) -> tuple[GameState, Mapping[str, Prompt]]:
        """Make the prompts of one stage, generate, and publish."""
        self.communication.announce_progress(state.round.number, stage)
        prompts = self.data.stage_inputs(state, stage)
        with stats.timed("generate"):
            contribution = self._generate(state, stage, prompts)
        state = state.with_contribution(contribution)
        if self._generates_ahead and stage == state.round.stages - 1:
            with stats.timed("data"):
                self._generate_ahead(state.round)
        claims: tuple[Claim, ...] = ()
        if self.progression.exchange is Exchange.PULL:
            # Other peers select by our claims, so the rewards are needed before publishing.
            with stats.timed("rewards"):
                claims = self._claims(contribution, self._score(state))
        self.communication.publish(contribution, claims)
        return state, {prompt.question_id: prompt for prompt in prompts}

    def _generate_ahead(self, round: Round) -> None:
        """Let the trainer start on the next round's first stage, assuming that membership and curriculum stay the
        same.
        """
        if round.number + 1 >= self.progression.max_rounds:
            return
        following = self._round(round.number + 1, round.members)
        state = GameState.begin(following, self.data.round_data(following))
        self.trainer.generate_ahead(self.data.stage_inputs(state, 0), following)

    def _generate(self, state: GameState, stage: int, prompts: Sequence[Prompt]) -> Contribution:
        generated = self.trainer.generate(prompts, replace(state.round, stage=stage))
        groups = checked_groups(generated, prompts, type(self.trainer).__name__)
        return Contribution(
            peer=state.peer,
            round=state.round.number,
            stage=stage,
            groups=groups,
            references={group.question_id: state.questions[group.question_id].reference for group in groups},
            tokenizer=self.trainer.tokenizer,
            policy_version=self.trainer.sampling_version,
            role=state.round.role,
        )

    def _score(self, state: GameState) -> Rewards:
        return checked_rewards(self.rewards.rewards(state), state, name_of(self.rewards))

    def _claims(self, contribution: Contribution, rewards: Rewards) -> tuple[Claim, ...]:
        keys = (
            GroupKey(contribution.round, contribution.stage, contribution.peer, group.question_id)
            for group in contribution.groups
        )
        return tuple(
            Claim(mean_reward(rewards.get(key, ())), has_nonzero_advantage(rewards.get(key, ()))) for key in keys
        )

    def _collect_policy(self, round: Round, stage: int) -> CollectPolicy:
        sharing = self.progression.sharing
        return CollectPolicy(
            exchange=self.progression.exchange,
            quorum=self.progression.quorum,
            deadline_seconds=self.progression.stage_deadline_seconds,
            external_groups=sharing.external_groups,
            max_per_peer=sharing.max_per_peer,
            prefer_nonzero_advantage=sharing.strategy == "nonzero-advantage",
            max_staleness=sharing.max_staleness,
            avoided=self._records.authors.doubtful(round.number),
            seed=derive_seed(round.peer_seed, "pull", stage),
            collected=self.collected_log.collected,
            invalid=self.collected_log.invalid,
        )

    def _evaluates_after(self, number: int) -> bool:
        every = self.progression.evaluate_every
        return every > 0 and ((number + 1) % every == 0 or number + 1 >= self.progression.max_rounds)

    def _evaluate(self, number: int) -> Evaluation | None:
        """Run the stages over held-out questions. Nothing is published or trained, and no random state changes."""
        questions = self.data.evaluation_data(self.progression.evaluation_questions)
        if not questions:
            return None
        evaluation = self._evaluation_pass(number, questions, None)
        sampling = self.progression.evaluation_sampling
        if sampling is None:
            return evaluation
        return evaluation.with_sampled(self._evaluation_pass(number, questions, sampling))

    def _evaluation_pass(self, number: int, questions: Sequence[Question], sampling: Sampling | None) -> Evaluation:
        round = replace(self._round(number, (self.communication.peer,), evaluation=True), sampling=sampling)
        state = GameState.begin(round, questions)
        for stage in range(self.progression.stages):
            state = state.with_contribution(self._generate(state, stage, self.data.stage_inputs(state, stage)))
        return evaluation_of(state, self._score(state), self.rewards.full_reward)

    def _report(
        self,
        state: GameState,
        rewards: Rewards,
        metrics: Mapping[str, float],
        stats: RoundStats,
    ) -> RoundReport:
        assert stats.last is not None, "a round has at least one stage"
        return RoundReport(
            round=state.round.number,
            peer=state.peer,
            **own_rollouts(state, rewards),
            metrics=dict(metrics),
            external=dict(sorted(Counter(key.peer for key in state.external).items())),
            influence=stats.influence,
            refused=stats.refused_by_author(),
            members=stats.last.members,
            missing=stats.last.missing,
            closed_by=stats.last.closed_by,
            policy_version=self.trainer.policy_version,
            seconds=dict(stats.seconds),
            outcomes={name: count for name, count in sorted(stats.outcomes.items()) if count},
            counters={**self.rewards.counters(), **(self._episodes.counters() if self._episodes is not None else {})},
            bytes_sent=stats.bytes_sent,
            bytes_received=stats.bytes_received,
            weights=self._weights_hash(),
        )
