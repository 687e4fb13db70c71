"""Everything that a condition's policy may read: the game, its observed cluster objects, its earlier status, and the
conditions that were evaluated before.

Shared readings of these are properties here. They only read; decisions are in `plan.conditions` and `plan.rollout`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property

from swarmgame_api.manifest import SwarmGameSpec
from swarmgame_api.status import Condition, ConditionType, SwarmGameStatus
from swarmgame_operator.plan.condition_policy import ConditionUpdate
from swarmgame_operator.plan.game_context import GameContext
from swarmgame_operator.plan.peer_job import FATAL_EXIT_CODES
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


def read_time(text: str) -> datetime:
    """Parse a time of the status."""
    return datetime.fromisoformat(text.replace("Z", "+00:00"))


def write_time(moment: datetime) -> str:
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def parse_indexes(text: str) -> frozenset[int]:
    """Parse a Job's list of indexes, such as `0-2,5`."""
    found: set[int] = set()
    for part in filter(None, text.split(",")):
        first, _, last = part.partition("-")
        found.update(range(int(first), int(last or first) + 1))
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
        return ended.type if ended is not None else next((type for type in TERMINAL if type in self.updates), None)

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
    def failed_indexes(self) -> frozenset[int]:
        """Peers that have failed for good."""
        return parse_indexes(self.job.failed_indexes) if self.job else frozenset()

    @cached_property
    def completed_indexes(self) -> frozenset[int]:
        return parse_indexes(self.job.completed_indexes) if self.job else frozenset()

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
                if container.exit_code in FATAL_EXIT_CODES
            ),
            None,
        )
