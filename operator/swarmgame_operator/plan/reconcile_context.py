"""Everything that a condition's policy may read: the game, its observed cluster objects, its earlier status, and the
conditions that were evaluated before.

Shared readings of these are properties here. They only read; decisions are in `plan.conditions` and `plan.rollout`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property

from swarmgame_api.manifest import SwarmGameSpec
from swarmgame_api.status import Condition, ConditionType, SwarmGameStatus
from swarmgame_operator.plan.condition_policy import ConditionUpdate
from swarmgame_operator.plan.game_context import GameContext
from swarmgame_operator.plan.initializer import CONTAINER as INITIALIZER
from swarmgame_operator.plan.peer_job import CONTAINER, FATAL_EXIT_CODES, template
from swarmgame_operator.plan.storage import checkpoints_claim, keeps_checkpoints
from swarmgame_operator.snapshot import ContainerFacts, JobFacts, Observed, PodFacts

ENDED = frozenset({"Succeeded", "Failed"})
TERMINAL: tuple[ConditionType, ...] = ("Complete", "Failed")
IMAGE_ERRORS = frozenset(
    {
        "ErrImagePull",
        "ImagePullBackOff",
        "ErrImageNeverPull",
        "InvalidImageName",
        "ImageInspectError",
        "RegistryUnavailable",
    }
)
ORDINARY_WAITS = frozenset({"", "ContainerCreating", "PodInitializing"})
INDEX = re.compile(r"[0-9]{1,6}")
"""An index of a Job: Kubernetes allows 100,000 completions of an Indexed Job."""


def read_time(text: str) -> datetime:
    """Parse a time of the status."""
    return datetime.fromisoformat(text.replace("Z", "+00:00"))


def write_time(moment: datetime) -> str:
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def parse_indexes(text: str) -> frozenset[int]:
    """Parse a Job's list of indexes, such as `0-2,5`. What is no index of a Job is left out."""
    found: set[int] = set()
    for part in text.split(","):
        first, _, last = part.partition("-")
        last = last or first
        if INDEX.fullmatch(first) and INDEX.fullmatch(last):
            found.update(range(int(first), int(last) + 1))
    return frozenset(found)


def termination_summary(container: ContainerFacts) -> str:
    """Return why a container ended, in one line."""
    message = " ".join(container.termination_message.split())[:1_000]
    how = (
        "was killed for lack of memory"
        if container.exit_reason == "OOMKilled"
        else f"ended with exit code {container.exit_code}"
    )
    return f"{container.name} {how}{f': {message}' if message else ''}"


def terminal_condition(status: SwarmGameStatus) -> Condition | None:
    """Return the condition that says how the game ended; None while it has not."""
    return next((each for each in status.conditions if each.type in TERMINAL and each.status == "True"), None)


def job_condition_reason(job: JobFacts | None, *types: str) -> str | None:
    """Return the reason of the first of these conditions that is True of the Job; None if none is."""
    if job is None:
        return None
    return next((each.reason for type in types for each in job.conditions if each.type == type), None)


@dataclass(frozen=True)
class ReconcileContext:
    """One game in one reconciliation.

    Args:
        before: the status as it was last written.
        updates: the conditions evaluated so far; `evaluate_conditions` adds to it.
    """

    game: GameContext
    observed: Observed
    before: SwarmGameStatus
    updates: dict[ConditionType, ConditionUpdate] = field(default_factory=dict)

    @property
    def spec(self) -> SwarmGameSpec:
        return self.game.spec

    @property
    def job(self) -> JobFacts | None:
        return self.observed.job

    @property
    def desired(self) -> int:
        return self.spec.peers.replicas

    @property
    def accepted(self) -> bool:
        """Whether objects may be created for the game."""
        return self.updates["Accepted"].is_true

    @property
    def suspended(self) -> bool:
        return self.updates["Suspended"].is_true

    @property
    def stopped_by_author(self) -> bool:
        """Whether the game should have no Job at all. A suspended Job that waits for its queue stays."""
        return self.spec.suspend or self.desired == 0

    @property
    def end(self) -> ConditionType | None:
        """Complete or Failed of a game that is over, since now or since before."""
        ended = terminal_condition(self.before)
        if ended is not None and not self.plays_on:
            return ended.type
        return next((type for type in TERMINAL if type in self.updates and self.updates[type].is_true), None)

    @cached_property
    def was_extended(self) -> bool:
        """Whether maxRounds was raised after the game was complete."""
        last = self.last("Complete")
        return last is not None and last.is_true and self.spec.game.max_rounds > self.before.progress.max_rounds

    @cached_property
    def plays_on(self) -> bool:
        """Whether a complete game has more rounds to play, from its checkpoints, and its old Job is still there."""
        if self.was_extended:
            return keeps_checkpoints(self.game) and self._claim_has_rounds
        last = self.last("Complete")
        ended = job_condition_reason(self.job, "Complete", "Failed", "SuccessCriteriaMet", "FailureTarget") is not None
        outdated = self.job is not None and self.job.template_hash != self.game.template_hash
        return last is not None and not last.is_true and ended and outdated

    @cached_property
    def new_claim(self) -> str:
        """The claim on which new pods have their checkpoints; empty if they are on none."""
        return checkpoints_claim(template(self.game)["spec"])

    @cached_property
    def keeps_rounds(self) -> bool:
        """Whether new pods go on from the checkpoints of the present Job: they are on a claim, and it stays."""
        return self.job is not None and self.job.checkpoints_claim == self.new_claim != ""

    @property
    def _claim_has_rounds(self) -> bool:
        """Whether the claim of a complete game has its checkpoints."""
        checkpoints = self.spec.storage.checkpoints
        if checkpoints.claim_name is None and checkpoints.claim_template is not None:
            facts = self.observed.children.get(("PersistentVolumeClaim", self.game.name("checkpoints")))
            if facts is None or facts.deleting:
                return False
        return self.job is None or self.keeps_rounds

    @property
    def outdated(self) -> bool:
        """Whether the peers' Job was made from other settings than the game has now."""
        current = (self.game.template_hash, self.game.earlier_template_hash)
        return self.job is not None and bool(self.job.template_hash) and self.job.template_hash not in current

    @property
    def rounds(self) -> int:
        """The rounds that the peers play. Those of a Job that waits for its replacement play what they started with."""
        answer, known = self.observed.progress, self.before.progress.max_rounds
        if not self.outdated:
            return self.spec.game.max_rounds
        return (answer.max_rounds if answer is not None else 0) or known or self.spec.game.max_rounds

    @cached_property
    def kept_claim(self) -> str:
        """The checkpoints' claim if it was made for an earlier game of this name; empty if it was not. A Job that was
        adopted runs on its claim already.
        """
        name = self.game.name("checkpoints")
        facts = self.observed.children.get(("PersistentVolumeClaim", name))
        if facts is None or self.spec.storage.checkpoints.claim_template is None or self.job is not None:
            return ""
        return name if facts.made_for not in ("", self.game.resource.uid) else ""

    @cached_property
    def name_is_taken(self) -> bool:
        """Whether an object that bears a child's name is controlled by another."""
        return any(facts.controller for facts in self.observed.children.values())

    @property
    def over(self) -> bool:
        return self.end is not None

    @property
    def playing(self) -> bool:
        """Whether the game should have a Job of peers."""
        return not self.over and not self.stopped_by_author

    def last(self, type: ConditionType) -> Condition | None:
        """Return a condition as it was last written."""
        return next((each for each in self.before.conditions if each.type == type), None)

    def seconds_since(self, type: ConditionType, status: str) -> float:
        """Return for how long a condition has had this status; 0 if it did not have it."""
        condition = self.last(type)
        if condition is None or condition.status != status:
            return 0.0
        return max(0.0, (self.observed.now - read_time(condition.last_transition_time)).total_seconds())

    @cached_property
    def peer_pods(self) -> tuple[PodFacts, ...]:
        return self.observed.pods_of("peer")

    @cached_property
    def active_pods(self) -> tuple[PodFacts, ...]:
        """Peers' pods that have not ended and are not terminating."""
        return tuple(pod for pod in self.peer_pods if pod.phase not in ENDED and not pod.terminating)

    @cached_property
    def leaving_pods(self) -> tuple[PodFacts, ...]:
        return tuple(pod for pod in self.peer_pods if pod.phase not in ENDED and pod.terminating)

    @cached_property
    def ready_indexes(self) -> frozenset[int]:
        return frozenset(pod.index for pod in self.active_pods if pod.ready and pod.index is not None)

    @cached_property
    def peers_run(self) -> bool:
        """Whether a peer runs, also one that is not Ready: it may be busy, or its node may have missed heartbeats."""
        return any(
            pod.ready or any(each.name == CONTAINER and each.running for each in pod.containers)
            for pod in self.active_pods
        )

    @cached_property
    def failed_indexes(self) -> frozenset[int]:
        """Peers that have failed for good."""
        return parse_indexes(self.job.failed_indexes) if self.job else frozenset()

    @cached_property
    def completed_indexes(self) -> frozenset[int]:
        return parse_indexes(self.job.completed_indexes) if self.job else frozenset()

    @cached_property
    def finished_indexes(self) -> frozenset[int]:
        """Peers that have played their last round. A pod has ended a moment before its Job counts it."""
        ended = (pod.index for pod in self.peer_pods if pod.phase == "Succeeded" and pod.index is not None)
        return self.completed_indexes | frozenset(ended)

    @cached_property
    def queued(self) -> bool:
        """Whether another controller keeps the Job suspended."""
        return self.job is not None and self.job.suspended and not self.job.deleting

    @property
    def bootnode_ready(self) -> bool:
        deployment = self.observed.workload("Deployment", self.game.name("bootnode"))
        return not self.game.has_bootnode or (deployment is not None and deployment.ready > 0)

    @property
    def begun(self) -> bool:
        """Whether a round of this game has ever begun. A game that was suspended since then still has begun."""
        return self.before.progress.last_updated_time is not None

    @cached_property
    def fatal(self) -> tuple[PodFacts, ContainerFacts] | None:
        """A container that ended because the game cannot be played, and its pod."""
        return next(
            (
                (pod, container)
                for pod in (*self.observed.pods_of("initializer"), *self.peer_pods)
                for container in pod.containers
                if container.exit_code in FATAL_EXIT_CODES and container.name in (CONTAINER, INITIALIZER)
            ),
            None,
        )
