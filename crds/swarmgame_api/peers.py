"""`spec.peers` and `spec.bootnode`: number of peers, and their pods."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, StringConstraints

from swarmgame_api.base import Model, Rule
from swarmgame_api.quantities import Expected, FreeForm, Keyed, OptionalImage, QualifiedName, Quantity, VisibleToCel
from swarmgame_api.storage import TemplateMetadata

Replicas = Annotated[int, Field(ge=0, le=4096)]
AtLeastOneReplica = Annotated[int, Field(ge=1, le=4096)]
Quantities = Annotated[dict[QualifiedName, Quantity], Field(max_length=32)]


class Resources(Model):
    """Limits and requests of a container."""

    limits: Quantities = Field(default_factory=dict)
    """The most it may use; GPUs belong here."""
    requests: Quantities = Field(default_factory=dict)
    """What the scheduler reserves. Without it, memory is requested as limited: pods that use more than they requested
    are killed first."""


class EnvironmentVariable(Model):
    """A variable of a container's environment."""

    name: Annotated[
        str,
        StringConstraints(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$", min_length=1, max_length=253),
        Expected("a variable's name: letters, digits and underscores"),
    ]
    """Its name."""
    value: Annotated[str, StringConstraints(max_length=32_768)] | None = None
    """Its value."""
    value_from: Annotated[FreeForm, VisibleToCel()] | None = None
    """Source of its value, as in a pod's env: secretKeyRef, configMapKeyRef, fieldRef …"""

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            cel="!(has(self.value) && has(self.valueFrom))",
            expected="a value or a valueFrom, not both",
            show=lambda variable: variable.name,  # never its value
            check=lambda variable: variable.value is None or variable.value_from is None,
        ),
    )


class PodTemplate(Model):
    """Any other fields of the pods; merged into them, lists by name."""

    metadata: TemplateMetadata = TemplateMetadata()
    """Labels and annotations of the pods."""
    spec: FreeForm = Field(default_factory=dict)
    """Any field of a pod's spec; checked by the API server, by a dry run."""


def _replicas_fit(peers: Any) -> bool:
    return bool(peers.replicas == 0 or peers.min_replicas <= peers.replicas <= peers.max_replicas)


class PeersSpec(Model):
    """Number of peers, and their resources."""

    replicas: Replicas = 4
    """Number of peers; `kubectl scale` sets it. 0 suspends the game."""
    min_replicas: AtLeastOneReplica = 1
    """With fewer ready peers the game is not Ready and does not start."""
    max_replicas: AtLeastOneReplica = 4096
    """Largest number of peers that scaling may set."""
    processes_per_peer: Annotated[
        Literal["auto"] | Annotated[int, Field(ge=1, le=64)], Expected("auto, or an integer from 1 to 64")
    ] = "auto"
    """Processes of one peer, which share its policy: one per GPU. auto: as many as it has GPUs, and at least 1; with
    `swarmgame run` it has its share of the machine's."""
    image: OptionalImage = ""
    """The worker's image. Empty: the operator's default."""
    resources: Resources = Resources()
    """What a peer's container may use."""
    env: Annotated[tuple[EnvironmentVariable, ...], Field(max_length=64), Keyed("name")] = ()
    """Additional variables of a peer's environment."""
    pod_template: PodTemplate = PodTemplate()
    """Anything else about the pods."""

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            cel="self.replicas == 0 || (self.minReplicas <= self.replicas && self.replicas <= self.maxReplicas)",
            expected="0, or a number from minReplicas to maxReplicas",
            check=_replicas_fit,
            field="replicas",
        ),
        Rule(
            cel="self.minReplicas <= self.maxReplicas",
            expected="at most maxReplicas",
            check=lambda peers: peers.min_replicas <= peers.max_replicas,
            field="minReplicas",
        ),
        Rule(
            cel="!has(self.env) || self.env.all(v, self.env.exists_one(other, other.name == v.name))",
            expected="every variable once",
            check=lambda peers: len({variable.name for variable in peers.env}) == len(peers.env),
            field="env",
            show=lambda peers: [variable.name for variable in peers.env],
        ),
    )


class BootnodeSpec(Model):
    """The address that new peers contact first: one small pod with a stable identity."""

    enabled: bool = True
    """Without it, `communication.initialPeers` must name peers of the swarm."""
    expose: Literal["ClusterIP", "NodePort", "LoadBalancer"] = "ClusterIP"
    """Where it is reachable: inside the cluster, or from outside too."""
