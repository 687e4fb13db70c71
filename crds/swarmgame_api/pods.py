"""`spec.podDefaults` and `spec.podTemplates`: what all pods of a game have in common, and the other fields of a role's.

A pod is made from levels, each of which overrides the one before: what the operator sets, the installation's defaults
(the chart's `games.podDefaults`, of the same type), `podDefaults`, and what the game says of the role. The template of
the peers is `peers.podTemplate`.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

from pydantic import Field

from swarmgame_api.base import Model, Rule
from swarmgame_api.coordination import SecretReference
from swarmgame_api.peers import EnvironmentVariable, PodTemplate, Resources
from swarmgame_api.quantities import Annotations, FreeForm, Keyed, Labels, OptionalObjectName

OF_A_POD = ("POD_IP", "JOB_COMPLETION_INDEX")
OWN_PREFIX = "SWARMGAME_"


def _differs_by_pod(name: str) -> bool:
    return name.startswith(OWN_PREFIX) or name in OF_A_POD


def _resource_names(defaults: Any) -> list[str]:
    return sorted({*defaults.resources.limits, *defaults.resources.requests})


class PodDefaults(Model):
    """Fields of all pods of a game: bootnode, initializer, gateway, chain and peers."""

    labels: Labels = Field(default_factory=dict)
    """Labels of the pods, and of every object that the operator makes for the game."""
    annotations: Annotations = Field(default_factory=dict)
    """Annotations of the pods."""
    arbitrary_user: bool | None = None
    """true: the pods name no user and no group, because the platform chooses them, as OpenShift does. Without such a
    platform the user is the image's."""
    security_context: FreeForm = Field(default_factory=dict)
    """Security context of the pods, merged by key into the operator's."""
    container_security_context: FreeForm = Field(default_factory=dict)
    """Security context of the containers, merged by key into the operator's."""
    node_selector: Labels = Field(default_factory=dict)
    """Labels of the nodes that the pods may run on."""
    tolerations: Annotated[tuple[FreeForm, ...], Field(max_length=64)] = ()
    """Tolerations, added to those that the operator sets for GPUs."""
    priority_class_name: OptionalObjectName = ""
    """Priority class of the pods."""
    resources: Resources = Resources()
    """What every container may use, unless its role says otherwise. A resource that is named here replaces both the
    limit and the request that the operator would set for it."""
    image_pull_secrets: Annotated[tuple[SecretReference, ...], Field(max_length=16), Keyed("name")] = ()
    """Pull secrets, added to the installation's."""
    env: Annotated[tuple[EnvironmentVariable, ...], Field(max_length=64), Keyed("name")] = ()
    """Variables of every container, such as those of a proxy or of a CA bundle."""
    volumes: Annotated[tuple[FreeForm, ...], Field(max_length=64)] = ()
    """Volumes of the pods, as in a pod's spec."""
    volume_mounts: Annotated[tuple[FreeForm, ...], Field(max_length=64)] = ()
    """Where they are mounted in every container."""

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            cel="!has(self.env) || self.env.all(v, self.env.exists_one(other, other.name == v.name))",
            expected="every variable once",
            check=lambda defaults: len({each.name for each in defaults.env}) == len(defaults.env),
            field="env",
            show=lambda defaults: [each.name for each in defaults.env],
        ),
        Rule(
            cel="!has(self.env) || self.env.all(v, !v.name.startsWith('SWARMGAME_')"
            " && v.name != 'POD_IP' && v.name != 'JOB_COMPLETION_INDEX')",
            expected="no variable that differs by pod: SWARMGAME_…, POD_IP, JOB_COMPLETION_INDEX",
            check=lambda defaults: not any(_differs_by_pod(each.name) for each in defaults.env),
            field="env",
            show=lambda defaults: [each.name for each in defaults.env if _differs_by_pod(each.name)],
        ),
        Rule(
            cel="!has(self.resources) || ((!has(self.resources.limits)"
            " || self.resources.limits.all(name, !name.contains('/')))"
            " && (!has(self.resources.requests) || self.resources.requests.all(name, !name.contains('/'))))",
            expected="no devices, of which every pod would take one; set them in peers.resources",
            check=lambda defaults: not any("/" in name for name in _resource_names(defaults)),
            field="resources",
            show=lambda defaults: [name for name in _resource_names(defaults) if "/" in name],
        ),
    )


NO_POD_DEFAULTS = PodDefaults()


class PodTemplates(Model):
    """Other fields of the pods of a role, merged like `peers.podTemplate`. A role that the game does not have is not
    used."""

    bootnode: PodTemplate | None = None
    """Of the bootnode."""
    initializer: PodTemplate | None = None
    """Of the initializer's Job, which a game has whose cache is a claim."""
    gateway: PodTemplate | None = None
    """Of the gateway to the chain."""
    chain: PodTemplate | None = None
    """Of the chain of `coordination.mode` Dev."""
