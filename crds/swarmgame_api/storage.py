"""`spec.storage` and `spec.identity`: volumes and keys that outlive a pod."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from swarmgame_api.base import Model, Rule
from swarmgame_api.quantities import Annotations, Labels, ObjectName, OptionalObjectName, QualifiedName, Quantity

Retention = Literal["Retain", "Delete"]


class TemplateMetadata(Model):
    """Labels and annotations of an object made from a template."""

    labels: Labels = Field(default_factory=dict)
    """Added to the operator's own."""
    annotations: Annotations = Field(default_factory=dict)
    """Added to the operator's own."""


class ClaimResources(Model):
    """Size of a claim."""

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
    """A claim that the operator creates."""

    metadata: TemplateMetadata = TemplateMetadata()
    """Labels and annotations of the claim."""
    spec: ClaimSpec
    """The claim."""


class EmptyDir(Model):
    """A folder that lives as long as its pod."""

    medium: Literal["", "Memory"] = ""
    """Empty: the node's disk; Memory: a tmpfs."""
    size_limit: Quantity | None = None
    """Its maximum size."""


def _sources(volume: Any) -> int:
    return sum(source is not None for source in (volume.claim_name, volume.claim_template, volume.empty_dir))


_ONE_SOURCE = Rule(
    cel="[has(self.claimName), has(self.claimTemplate), has(self.emptyDir)].filter(given, given).size() <= 1",
    expected="one of claimName, claimTemplate and emptyDir, or none of them for an emptyDir",
    check=lambda volume: _sources(volume) <= 1,
)


class CacheSpec(Model):
    """Models and datasets, shared by the peers of a node or of the game. Without a source: an emptyDir."""

    claim_name: ObjectName | None = None
    """An existing claim."""
    claim_template: ClaimTemplate | None = None
    """A claim that is created."""
    empty_dir: EmptyDir | None = None
    """A folder that is deleted with the pod."""

    rules: ClassVar[tuple[Rule, ...]] = (_ONE_SOURCE,)


class RetentionPolicy(Model):
    """Whether the checkpoints' claim is kept."""

    when_deleted: Retention = "Retain"
    """When the game is deleted."""
    when_finished: Retention = "Retain"
    """When the game is complete or has failed."""


class CheckpointsSpec(Model):
    """Where and how often a peer writes a checkpoint. Without a source: an emptyDir, which survives a restart of the
    container, not the pod."""

    claim_name: ObjectName | None = None
    """An existing claim."""
    claim_template: ClaimTemplate | None = None
    """A claim that is created for the game; every peer has its own folder in it."""
    empty_dir: EmptyDir | None = None
    """A folder that is deleted with the pod."""
    every_rounds: Annotated[int, Field(ge=1, le=1_000_000)] = 10
    """Rounds between two checkpoints; a peer that is stopped writes one too."""
    keep: Annotated[int, Field(ge=1, le=1000)] = 3
    """Number of checkpoints kept; the oldest are deleted."""
    retention_policy: RetentionPolicy | None = None
    """Whether the claim is kept. Absent: it is kept; an emptyDir is always deleted with its pod."""

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
    """Volumes for models, datasets and checkpoints."""

    cache: CacheSpec = CacheSpec()
    """Models and datasets."""
    checkpoints: CheckpointsSpec = CheckpointsSpec()
    """Weights, optimizer state, random states."""
    shared_memory: Quantity = "8Gi"
    """Maximum size of /dev/shm, which counts towards the pod's memory."""


class IdentitySpec(Model):
    """The peers' keys: one secp256k1 key per peer, its libp2p identity and its proof on chain."""

    secret_name: OptionalObjectName = ""
    """The Secret with `peer-<i>.key` files. Empty: the operator creates `<game>-peer-keys`."""
    retention_policy: Retention = "Retain"
    """Whether the keys are kept when the game is deleted."""
