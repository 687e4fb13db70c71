"""`status`: what the operator says of a game. Written by the operator alone; read by people, kubectl and tests.

Not part of a manifest: `load` leaves it aside. Invariant: every list and text is bounded, so that a status always fits
its object.
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
    Expected("one word in CamelCase"),
]
Count = Annotated[int, Field(ge=0, le=2**31 - 1)]
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
        "NotAccepted",
        "GameSuspended",
        "GameComplete",
        "GameFailed",
    ),
    "Progressing": ("RoundAdvancing", "ScalingUp", "ScalingDown", "RollingOut", "Stalled", "Finished"),
    "Degraded": ("PeersFailing", "ImagePullFailed", "OutOfMemory", "ChainLagging", "CheckpointFailing", "AsExpected"),
    "Suspended": ("SuspendedByUser", "ScaledToZero", "NotAdmitted", "Preempted", "Resumed"),
    "Complete": ("RoundsReached", "CoordinatorFinished", "AllPeersSucceeded"),
    "Failed": ("DeadlineExceeded", "PreRunningDeadlineExceeded", "TooManyFailedPeers", "FatalExitCode"),
}
"""Every reason that a condition may have: an interface, as alerts and scripts read them."""


class Condition(Model):
    """One thing that is so, is not so, or is not known."""

    type: ConditionType
    """Which."""
    status: Literal["True", "False", "Unknown"]
    """Whether it is so."""
    reason: Reason
    """Why, for programs."""
    message: Annotated[str, StringConstraints(max_length=32_768)] = ""
    """Why, for people."""
    observed_generation: Annotated[int, Field(ge=0, le=2**53 - 1)] = 0
    """The generation of the game that this was said of."""
    last_transition_time: Time
    """When status last changed."""


class PeerCounts(Model):
    """How many peers are where."""

    desired: Count = 0
    """Asked for."""
    active: Count = 0
    """With a pod that has not ended."""
    ready: Count = 0
    """In the swarm."""
    registered: Count = 0
    """Proven on chain."""
    succeeded: Count = 0
    """Done."""
    failed: Count = 0
    """Failed for good."""
    terminating: Count = 0
    """On their way out."""


class BootnodeStatus(Model):
    """The bootnode."""

    ready: bool = False
    """Whether it answers."""
    address: Annotated[str, StringConstraints(max_length=512)] = ""
    """Its multiaddress: what `swarmgame join --initial-peer` takes."""


class UnhealthyPeer(Model):
    """A peer that is not well."""

    index: Count
    """Its completion index."""
    reason: Reason
    """Why, for programs."""
    message: Text = ""
    """Why, for people."""


class MetricStatus(Model):
    """A figure of the last round."""

    name: Annotated[str, StringConstraints(min_length=1, max_length=64)]
    """Its name, as the worker's metrics have it."""
    value: Annotated[str, StringConstraints(max_length=32)]
    """Its value, as text, because the API has no floats."""


class ProgressStatus(Model):
    """How far the game is."""

    round: Count = 0
    """Rounds played."""
    stage: Count = 0
    """The stage of the round under way."""
    max_rounds: Count = 0
    """Rounds to play."""
    percentage: Annotated[int, Field(ge=0, le=100)] = 0
    """Share of the rounds played."""
    estimated_remaining_seconds: Count | None = None
    """From the time that the last rounds took."""
    last_updated_time: Time | None = None
    """When this was learnt."""
    metrics: Annotated[tuple[MetricStatus, ...], Field(max_length=32), Keyed("name")] = ()
    """Reward, entropy and the like."""


class CoordinationStatus(Model):
    """What the chain says."""

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
    """When it was written."""


class SwarmGameStatus(Model):
    """What is so. Conditions are told apart by type."""

    observed_generation: Annotated[int, Field(ge=0, le=2**53 - 1)] = 0
    """The generation that this status is about."""
    start_time: Time | None = None
    """When the game was first admitted."""
    completion_time: Time | None = None
    """When it was over."""
    selector: Annotated[str, StringConstraints(max_length=1024)] = ""
    """The peers' label selector; for the scale subresource."""
    replicas: Count = 0
    """Peers that have a pod; for the scale subresource."""
    peers: PeerCounts = PeerCounts()
    """How many peers are where."""
    bootnode: BootnodeStatus = BootnodeStatus()
    """The bootnode."""
    unhealthy_peers: Annotated[tuple[UnhealthyPeer, ...], Field(max_length=16), Keyed("index")] = ()
    """The first sixteen that are not well, by index."""
    progress: ProgressStatus = ProgressStatus()
    """How far the game is."""
    coordination: CoordinationStatus | None = None
    """The chain, where there is one."""
    checkpoint: CheckpointStatus | None = None
    """The newest checkpoint."""
    job_name: ShortText = ""
    """The Job that runs the peers."""
    template_hash: ShortText = ""
    """Tells whether the pods are those that the game asks for."""
    conditions: Annotated[tuple[Condition, ...], Field(max_length=8), Keyed("type")] = ()
    """What is so, one entry a type."""
