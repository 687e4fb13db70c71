"""`status`: the observed state of a game. The operator writes it; people, kubectl and tests read it.

It is not part of a manifest: `load` ignores it. Invariant: every list and text is bounded, so that a status always
fits its object.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, StringConstraints

from swarmgame_api.base import Model
from swarmgame_api.quantities import Address, Expected, Keyed, Text, Time

ConditionType = Literal["Accepted", "Registered", "Ready", "Progressing", "Degraded", "Suspended", "Complete", "Failed"]
Reason = Annotated[
    str,
    StringConstraints(pattern=r"^[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?$", min_length=1, max_length=128),
    Expected("a name in CamelCase"),
]
MAX_COUNT = 2**31 - 1
"""The largest number that a count of the status may be."""
Count = Annotated[int, Field(ge=0, le=MAX_COUNT)]
ShortText = Annotated[str, StringConstraints(max_length=253), Expected("a text of at most 253 characters")]

REASONS: dict[ConditionType, tuple[str, ...]] = {
    "Accepted": (
        "Valid",
        "InvalidPodTemplate",
        "InvalidGame",
        "SecretNotFound",
        "ModuleNotFound",
        "ModelNotFound",
        "UnsupportedCluster",
        "ManagedExternally",
    ),
    "Registered": (
        "AllRegistered",
        "PartlyRegistered",
        "RPCUnavailable",
        "WrongChain",
        "InsufficientFunds",
        "TransactionReverted",
        "NotRequired",
    ),
    "Ready": (
        "PeersReady",
        "WaitingForQueue",
        "WaitingForPeers",
        "WaitingForBootnode",
        "Initializing",
        "Unschedulable",
        "Blocked",
        "NotAccepted",
        "GameSuspended",
        "Complete",
        "Failed",
    ),
    "Progressing": (
        "RoundAdvancing",
        "ScalingUp",
        "ScalingDown",
        "RollingOut",
        "Stalled",
        "NoAnswer",
        "NotPolled",
        "Finished",
    ),
    "Degraded": (
        "PlanFailed",
        "NotServed",
        "NameTaken",
        "KeyUnusable",
        "ObjectRefused",
        "PodsRefused",
        "PodBlocked",
        "VolumeMissing",
        "NodeLost",
        "PodStuck",
        "SidecarRuns",
        "SidecarEnded",
        "ClaimKept",
        "PeersFailing",
        "ImagePullFailed",
        "OutOfMemory",
        "ChainLagging",
        "CheckpointFailing",
        "ChangeWaits",
        "NotObserved",
        "AsExpected",
    ),
    "Suspended": ("SuspendedByUser", "ScaledToZero", "NotAdmitted", "Preempted", "Resumed"),
    "Complete": ("RoundsReached", "CoordinatorFinished", "AllPeersSucceeded", "PlaysOn"),
    "Failed": ("DeadlineExceeded", "PreRunningDeadlineExceeded", "TooManyFailedPeers", "FatalExitCode"),
}
"""Every reason of each condition. They are an interface: alerts and scripts read them."""


class Condition(Model):
    """One aspect of the game's state: true, false or unknown."""

    type: ConditionType
    """Which aspect."""
    status: Literal["True", "False", "Unknown"]
    """Whether it is true."""
    reason: Reason
    """The reason as an identifier, for programs."""
    message: Annotated[str, StringConstraints(max_length=32_768)] = ""
    """The reason as a text, for people."""
    observed_generation: Annotated[int, Field(ge=0, le=2**53 - 1)] = 0
    """The generation of the game that this describes."""
    last_transition_time: Time
    """Time at which status last changed."""

    @property
    def is_true(self) -> bool:
        return self.status == "True"


class PeerCounts(Model):
    """Numbers of peers by state."""

    desired: Count = 0
    """Number set in the manifest."""
    active: Count = 0
    """Peers with a pod that has not ended."""
    ready: Count = 0
    """Peers in the swarm."""
    registered: Count = 0
    """Peers registered on chain."""
    succeeded: Count = 0
    """Peers that have finished."""
    failed: Count = 0
    """Permanently failed peers."""
    terminating: Count = 0
    """Peers that are stopping."""


class BootnodeStatus(Model):
    """State of the bootnode."""

    ready: bool = False
    """Whether it is ready."""
    address: Annotated[str, StringConstraints(max_length=512)] = ""
    """Its multiaddress: what `swarmgame join --initial-peer` takes."""


class UnhealthyPeer(Model):
    """A peer with a failure."""

    index: Count
    """Its completion index."""
    reason: Reason
    """The reason as an identifier, for programs."""
    message: Text = ""
    """The reason as a text, for people."""


class MetricStatus(Model):
    """A metric of the last round."""

    name: Annotated[str, StringConstraints(min_length=1, max_length=64)]
    """Its name in the worker's metrics."""
    value: Annotated[str, StringConstraints(max_length=32)]
    """Its value, as text, because the API has no floats."""


class ProgressStatus(Model):
    """Progress of the game."""

    round: Count = 0
    """Completed rounds."""
    stage: Count = 0
    """The stage of the current round."""
    max_rounds: Count = 0
    """Rounds of the game."""
    percentage: Annotated[int, Field(ge=0, le=100)] = 0
    """Share of the rounds that are completed."""
    estimated_remaining_seconds: Count | None = None
    """Estimate from the duration of the last rounds."""
    last_updated_time: Time | None = None
    """Time of the last update."""
    metrics: Annotated[tuple[MetricStatus, ...], Field(max_length=32), Keyed("name")] = ()
    """Reward, entropy and the like."""


class CoordinationStatus(Model):
    """State on the chain."""

    contract_address: Address | None = None
    """The coordinator contract."""
    chain_id: Annotated[int, Field(ge=1, le=2**53 - 1)] | None = None
    """The chain."""
    round: Count = 0
    """The round on chain."""
    last_observed_block: Annotated[int, Field(ge=0, le=2**53 - 1)] = 0
    """The last block read."""


class CheckpointStatus(Model):
    """The newest checkpoint that a majority of the peers has."""

    round: Count
    """Its round."""
    time: Time
    """Time at which it was written."""


class SwarmGameStatus(Model):
    """The observed state of the game."""

    observed_generation: Annotated[int, Field(ge=0, le=2**53 - 1)] = 0
    """The generation that this status describes."""
    start_time: Time | None = None
    """Time at which the game was first admitted."""
    completion_time: Time | None = None
    """Time at which it ended."""
    selector: Annotated[str, StringConstraints(max_length=1024)] = ""
    """The peers' label selector; for the scale subresource."""
    replicas: Count = 0
    """Peers that have a pod; for the scale subresource."""
    peers: PeerCounts = PeerCounts()
    """Numbers of peers by state."""
    bootnode: BootnodeStatus = BootnodeStatus()
    """State of the bootnode."""
    unhealthy_peers: Annotated[tuple[UnhealthyPeer, ...], Field(max_length=16), Keyed("index")] = ()
    """The first sixteen peers with a failure, by index."""
    progress: ProgressStatus = ProgressStatus()
    """Progress of the game."""
    coordination: CoordinationStatus | None = None
    """State on the chain. Absent without a chain."""
    checkpoint: CheckpointStatus | None = None
    """The newest checkpoint."""
    job_name: ShortText = ""
    """The Job that runs the peers."""
    template_hash: ShortText = ""
    """Hash of the peers' pod template; a change replaces the pods."""
    conditions: Annotated[tuple[Condition, ...], Field(max_length=8), Keyed("type")] = ()
    """Conditions, one entry per type."""
