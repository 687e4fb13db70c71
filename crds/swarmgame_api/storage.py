"""`spec.storage` and `spec.identity`: what outlives a pod."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from swarmgame_api.base import Model, Rule
from swarmgame_api.quantities import Annotations, Labels, ObjectName, OptionalObjectName, QualifiedName, Quantity

Retention = Literal["Retain", "Delete"]


class TemplateMetadata(Model):
    """Labels and annotations of what is made from a template."""

    labels: Labels = Field(default_factory=dict)
    """Added to the operator's own."""
    annotations: Annotations = Field(default_factory=dict)
    """Added to the operator's own."""


class ClaimResources(Model):
    """How much a claim asks for."""

    requests: Annotated[dict[QualifiedName, Quantity], Field(min_length=1, max_length=8)]
    """`storage` and its size."""

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            cel="'storage' in self.requests",
            expected="a size under storage",
            check=lambda resources: "storage" in resources.requests,
            field="requests",
        ),
    )


class ClaimSpec(Model):
    """The fields of a PersistentVolumeClaim that a game may choose."""

    access_modes: Annotated[
        tuple[Literal["ReadWriteOnce", "ReadOnlyMany", "ReadWriteMany", "ReadWriteOncePod"], ...],
        Field(min_length=1, max_length=4),
    ] = ("ReadWriteOnce",)
    """How the volume may be mounted."""
    storage_class_name: ObjectName | None = None
    """The storage class; absent: the cluster's default."""
    resources: ClaimResources
    """The size."""


class ClaimTemplate(Model):
    """A claim that the operator makes."""

    metadata: TemplateMetadata = TemplateMetadata()
    """Labels and annotations of the claim."""
    spec: ClaimSpec
    """The claim."""


class EmptyDir(Model):
    """A folder that lives as long as its pod."""

    medium: Literal["", "Memory"] = ""
    """Where it lives: on the node's disk, or in memory."""
    size_limit: Quantity | None = None
    """Its greatest size."""


def _sources(volume: Any) -> int:
    return sum(source is not None for source in (volume.claim_name, volume.claim_template, volume.empty_dir))


_ONE_SOURCE = Rule(
    cel="[has(self.claimName), has(self.claimTemplate), has(self.emptyDir)].filter(given, given).size() <= 1",
    expected="one of claimName, claimTemplate and emptyDir, or none of them for an emptyDir",
    check=lambda volume: _sources(volume) <= 1,
)


class CacheSpec(Model):
    """Models and datasets, shared by the peers of a node or of the game. With no source given: an emptyDir."""

    claim_name: ObjectName | None = None
    """A claim that exists."""
    claim_template: ClaimTemplate | None = None
    """A claim to be made."""
    empty_dir: EmptyDir | None = None
    """A folder that goes with the pod."""

    rules: ClassVar[tuple[Rule, ...]] = (_ONE_SOURCE,)


class RetentionPolicy(Model):
    """What becomes of the checkpoints' claim."""

    when_deleted: Retention = "Retain"
    """When the game is deleted."""
    when_finished: Retention = "Retain"
    """When the game is complete or has failed."""


class CheckpointsSpec(Model):
    """Where and how often a peer saves itself. With no source given: an emptyDir, which survives a restart but not the
    pod.
    """

    claim_name: ObjectName | None = None
    """A claim that exists."""
    claim_template: ClaimTemplate | None = None
    """A claim to be made: one for the game, in which every peer has a folder of its own."""
    empty_dir: EmptyDir | None = None
    """A folder that goes with the pod."""
    every_rounds: Annotated[int, Field(ge=1, le=1_000_000)] = 10
    """How often; and always when a peer is told to stop."""
    keep: Annotated[int, Field(ge=1, le=1000)] = 3
    """How many are kept; the oldest go first."""
    retention_policy: RetentionPolicy | None = None
    """What becomes of the claim. Absent: it is retained; an emptyDir always goes with its pod."""

    rules: ClassVar[tuple[Rule, ...]] = (
        _ONE_SOURCE,
        Rule(
            cel="!has(self.retentionPolicy) || has(self.claimName) || has(self.claimTemplate)"
            " || (self.retentionPolicy.whenDeleted == 'Delete' && self.retentionPolicy.whenFinished == 'Delete')",
            expected="a claimName or claimTemplate where the policy is Retain: an emptyDir cannot be retained",
            check=lambda checkpoints: (
                checkpoints.retention_policy is None
                or checkpoints.claim_name is not None
                or checkpoints.claim_template is not None
                or (checkpoints.retention_policy.when_deleted, checkpoints.retention_policy.when_finished)
                == ("Delete", "Delete")
            ),
            field="retentionPolicy",
        ),
    )


class StorageSpec(Model):
    """What outlives a process, a pod or a game."""

    cache: CacheSpec = CacheSpec()
    """Models and datasets."""
    checkpoints: CheckpointsSpec = CheckpointsSpec()
    """Weights, optimizer, random states."""
    shared_memory: Quantity = "8Gi"
    """Greatest size of /dev/shm, which counts towards the pod's memory."""


class IdentitySpec(Model):
    """The peers' keys: one secp256k1 key a peer, which is its libp2p identity and its proof on chain."""

    secret_name: OptionalObjectName = ""
    """The Secret with `peer-<i>.key` files. Empty: made by the operator, as `<game>-peer-keys`."""
    retention_policy: Retention = "Retain"
    """Whether the keys stay when the game is deleted."""
