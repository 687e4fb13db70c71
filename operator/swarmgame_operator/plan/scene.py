"""The scene: a game, what was seen around it, and what was last said of it; with the few readings that several policies
share.

Invariant: everything here is read from its three parts; nothing is decided.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property

from swarmgame_api.manifest import SwarmGameSpec
from swarmgame_api.status import Condition, ConditionType, SwarmGameStatus
from swarmgame_operator.observed import ContainerFacts, JobFacts, Observed, PodFacts
from swarmgame_operator.plan.peer_job import FATAL_EXIT_CODES
from swarmgame_operator.plan.setting import Setting

ENDED = frozenset({"Succeeded", "Failed"})
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
    """A time of the status."""
    return datetime.fromisoformat(text.replace("Z", "+00:00"))


def write_time(moment: datetime) -> str:
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def indexes(text: str) -> frozenset[int]:
    """A Job's list of indexes, `0-2,5`, as numbers."""
    found: set[int] = set()
    for part in filter(None, text.split(",")):
        first, _, last = part.partition("-")
        found.update(range(int(first), int(last or first) + 1))
    return frozenset(found)


def last_words(container: ContainerFacts) -> str:
    """Why a container ended, in one line."""
    words = " ".join(container.termination_message.split())[:1_000]
    how = (
        "was killed for lack of memory"
        if container.exit_reason == "OOMKilled"
        else f"ended with exit code {container.exit_code}"
    )
    return f"{container.name} {how}{f': {words}' if words else ''}"


@dataclass(frozen=True)
class Scene:
    """Everything that a policy may look at."""

    setting: Setting
    observed: Observed
    before: SwarmGameStatus

    @property
    def spec(self) -> SwarmGameSpec:
        return self.setting.spec

    @property
    def job(self) -> JobFacts | None:
        return self.observed.job

    @property
    def desired(self) -> int:
        return self.spec.peers.replicas

    def last(self, type: ConditionType) -> Condition | None:
        """A condition as it was last said."""
        return next((each for each in self.before.conditions if each.type == type), None)

    def was(self, type: ConditionType) -> bool:
        condition = self.last(type)
        return condition is not None and condition.status == "True"

    def seconds_since(self, type: ConditionType, status: str) -> float:
        """For how long a condition has had this status; 0 when it did not have it."""
        condition = self.last(type)
        if condition is None or condition.status != status:
            return 0.0
        return max(0.0, (self.observed.now - read_time(condition.last_transition_time)).total_seconds())

    @cached_property
    def peer_pods(self) -> tuple[PodFacts, ...]:
        return self.observed.pods_of("peer")

    @cached_property
    def active_pods(self) -> tuple[PodFacts, ...]:
        """Peers' pods that have not ended and are not leaving."""
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
        return indexes(self.job.failed_indexes) if self.job else frozenset()

    @cached_property
    def completed_indexes(self) -> frozenset[int]:
        return indexes(self.job.completed_indexes) if self.job else frozenset()

    @cached_property
    def queued(self) -> bool:
        """Whether somebody else keeps the Job suspended."""
        return self.job is not None and self.job.suspended and not self.job.deleting

    @property
    def bootnode_ready(self) -> bool:
        deployment = self.observed.workload("Deployment", self.setting.name("bootnode"))
        return not self.setting.has_bootnode or (deployment is not None and deployment.ready > 0)

    @property
    def begun(self) -> bool:
        """Whether a round of this game has ever begun. A game that was suspended since stays begun."""
        return self.before.progress.last_updated_time is not None

    @cached_property
    def fatal(self) -> tuple[PodFacts, ContainerFacts] | None:
        """A container that ended because the game cannot be played."""
        return next(
            (
                (pod, container)
                for pod in (*self.observed.pods_of("initializer"), *self.peer_pods)
                for container in pod.containers
                if container.exit_code in FATAL_EXIT_CODES
            ),
            None,
        )


def job_says(job: JobFacts | None, *types: str) -> str | None:
    """The reason of the first of these conditions that is True of the Job; None where none is."""
    if job is None:
        return None
    return next((each.reason for type in types for each in job.conditions if each.type == type), None)
