"""A valid game and what its children share: names, labels, owner, and the hash of the manifest that a child was
written from.

A child's name is the game's with a role, so people find it. No name is longer than 63 characters, because the game's
has at most 52 and the longest suffix 11.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from swarmgame_api.manifest import API_VERSION, KIND, SwarmGame, SwarmGameSpec
from swarmgame_api.peers import PodTemplate
from swarmgame_api.pods import NO_POD_DEFAULTS, PodDefaults
from swarmgame_api.resource import GameResource
from swarmgame_api.sampler import VllmOptions
from swarmgame_operator.defaults import Defaults
from swarmgame_operator.plan.plan_types import Manifest

GAME_LABEL = "swarmgame.dev/game"
MANAGED_BY_LABEL = "app.kubernetes.io/managed-by"
INSTANCE_LABEL = "app.kubernetes.io/instance"
ROLE_LABEL = "swarmgame.dev/role"
INTENT_HASH = "swarmgame.dev/intent-hash"
TEMPLATE_HASH = "swarmgame.dev/template-hash"
MADE_FOR = "swarmgame.dev/made-for"
"""The uid of the game that a claim was made for."""

HUB = "hf://"
HTTP_PORT = 8080
GATEWAY_PORT = 8645
CHAIN_PORT = 8545


def digest(data: Any) -> str:
    """Return a short hash of JSON-like data."""
    text = json.dumps(data, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@dataclass(frozen=True)
class GameContext:
    """A game with a valid manifest, and the installation's defaults.

    Args:
        resource: the object.
        manifest: its manifest.
        bootnode_peer: the peer id of the bootnode's key; empty while there is no key.
        peer_ids: the peer ids of the peers' keys.
    """

    resource: GameResource
    manifest: SwarmGame
    defaults: Defaults
    bootnode_peer: str = ""
    peer_ids: tuple[str, ...] = ()

    @property
    def spec(self) -> SwarmGameSpec:
        return self.manifest.spec

    @property
    def namespace(self) -> str:
        return self.resource.namespace

    def name(self, suffix: str) -> str:
        """Return `<game>-<suffix>`."""
        return f"{self.resource.name}-{suffix}"

    def host(self, service: str) -> str:
        """Return the DNS name of a Service of this game."""
        domain = f".{self.defaults.cluster_domain}" if self.defaults.cluster_domain else ""
        return f"{self.name(service)}.{self.namespace}.svc{domain}"

    @property
    def worker_image(self) -> str:
        return self.spec.peers.image or self.defaults.worker_image

    @property
    def has_chain(self) -> bool:
        return self.spec.coordination.mode != "None"

    @property
    def closed(self) -> bool:
        """Whether the swarm is closed: its peers meet at peer 0, and no others join."""
        return self.spec.communication.backend == "TorchDistributed"

    @property
    def has_bootnode(self) -> bool:
        return self.spec.bootnode.enabled and not self.closed

    @property
    def exposed(self) -> bool:
        """Whether peers outside the cluster may be members."""
        return bool(
            (self.has_bootnode and self.spec.bootnode.expose != "ClusterIP") or self.spec.communication.initial_peers
        )

    @property
    def cache_outlives_a_pod(self) -> bool:
        cache = self.spec.storage.cache
        return cache.claim_name is not None or cache.claim_template is not None

    @property
    def must_be_initialized(self) -> bool:
        """Whether a model must be brought into the cache. A `file://` model is mounted by the podTemplate."""
        return self.spec.model is not None and not self.spec.model.uri.startswith("file://")

    @cached_property
    def model_on_hub(self) -> bool:
        return self.spec.model is not None and self.spec.model.uri.startswith(HUB)

    @cached_property
    def data_on_hub(self) -> bool:
        """Whether an option of the game's data is an address on the hub."""
        return any(text.startswith(HUB) for text in _texts_in(self.spec.game.data.with_))

    @cached_property
    def template_hash(self) -> str:
        """The hash of what the author specified about the pods, without the number of peers, deadlines, the size of
        claims and the operator's version.
        """
        return self._template_hash(sizes=False)

    @cached_property
    def earlier_template_hash(self) -> str:
        """The same with the size of claims, as earlier operators wrote it: their Jobs are not replaced."""
        return self._template_hash(sizes=True)

    def _template_hash(self, *, sizes: bool) -> str:
        data = self.spec_data
        peers = {
            key: entry
            for key, entry in data.get("peers", {}).items()
            if key not in ("replicas", "minReplicas", "maxReplicas")
        }
        communication = {key: entry for key, entry in data.get("communication", {}).items() if key != "initialPeers"}
        failure = {key: entry for key, entry in data.get("failurePolicy", {}).items() if key == "backoffLimitPerPeer"}
        storage_data = data.get("storage", {}) if sizes else _without_sizes(data.get("storage", {}))
        checkpoints = {
            key: entry for key, entry in storage_data.get("checkpoints", {}).items() if key != "retentionPolicy"
        }
        trackers = data.get("observability", {}).get("trackers")
        return digest(
            {
                # Only where there are any: an operator that knows this field restarts no game without it.
                **({"trackers": trackers} if trackers else {}),
                **({"podDefaults": self.pod_defaults_data} if self.pod_defaults_data else {}),
                "game": data.get("game"),
                "model": data.get("model"),
                "peers": peers,
                "communication": communication,
                "coordination": data.get("coordination"),
                "bootnode": data.get("bootnode", {}).get("enabled"),
                "identity": data.get("identity", {}).get("secretName"),
                "storage": {**storage_data, "checkpoints": checkpoints},
                "completion": data.get("completion"),
                "failure": failure,
                "grace": data.get("terminationGracePeriodSeconds"),
            }
        )

    @cached_property
    def pod_levels(self) -> tuple[PodDefaults, ...]:
        """The defaults of all pods, lowest first: the installation's and the game's, without those that say nothing."""
        levels = (self.defaults.pod_defaults, self.spec.pod_defaults)
        return tuple(level for level in levels if level is not None and level != NO_POD_DEFAULTS)

    @cached_property
    def pod_defaults_data(self) -> dict[str, Any]:
        """`spec.podDefaults` without fields at their defaults, but with nulls, which remove a key."""
        defaults = self.spec.pod_defaults
        if defaults is None:
            return {}
        data: dict[str, Any] = defaults.model_dump(mode="json", by_alias=True, exclude_defaults=True)
        return data

    @cached_property
    def arbitrary_user(self) -> bool:
        """Whether the platform chooses the user of the pods."""
        given = [level.arbitrary_user for level in self.pod_levels if level.arbitrary_user is not None]
        return bool(given) and given[-1]

    def pod_template(self, role: str) -> PodTemplate:
        """Return what the game says of the pods of a role."""
        if role == "peer":
            return self.spec.peers.pod_template
        templates = self.spec.pod_templates
        found: PodTemplate | None = getattr(templates, role) if templates is not None else None
        return found or PodTemplate()

    @cached_property
    def vllm(self) -> VllmOptions | None:
        """The vLLM server that the peers generate with; None if they generate themselves."""
        return self.spec.game.vllm

    @property
    def vllm_sidecar(self) -> VllmOptions | None:
        """The vLLM server beside every peer; None if there is none, or the url of an existing one is given."""
        return self.vllm if self.vllm is not None and not self.vllm.url else None

    @property
    def key_secret(self) -> str:
        """The Secret with the peers' keys."""
        return self.spec.identity.secret_name or self.name("peer-keys")

    @cached_property
    def spec_data(self) -> dict[str, Any]:
        """The spec without fields at their defaults, so that a newer schema's defaults change no hash."""
        data: dict[str, Any] = self.spec.model_dump(
            mode="json", by_alias=True, exclude_none=True, exclude_defaults=True
        )
        return data

    def labels(self, role: str) -> dict[str, str]:
        return {
            "app.kubernetes.io/name": "swarmgame",
            INSTANCE_LABEL: self.resource.name,
            "app.kubernetes.io/component": role,
            "app.kubernetes.io/part-of": "swarmgame",
            MANAGED_BY_LABEL: "swarmgame-operator",
            GAME_LABEL: self.resource.name,
            ROLE_LABEL: role,
        }

    def selector(self, role: str) -> dict[str, str]:
        """Return the labels that select the pods of a role. They never change: selectors are immutable."""
        return {GAME_LABEL: self.resource.name, ROLE_LABEL: role}

    @property
    def owner(self) -> Manifest:
        return {
            "apiVersion": API_VERSION,
            "kind": KIND,
            "name": self.resource.name,
            "uid": self.resource.uid,
            "controller": True,
            "blockOwnerDeletion": True,
        }

    def metadata(
        self,
        suffix: str,
        role: str,
        *,
        owned: bool = True,
        labels: Mapping[str, str] | None = None,
        annotations: Mapping[str, str] | None = None,
    ) -> Manifest:
        """Return a child's metadata. The author's labels and annotations never replace the operator's."""
        common = {key: text for level in self.pod_levels for key, text in level.labels.items()}
        found: Manifest = {
            "name": self.name(suffix),
            "namespace": self.namespace,
            "labels": {**common, **(labels or {}), **self.labels(role)},
        }
        if annotations:
            found["annotations"] = dict(annotations)
        if owned:
            found["ownerReferences"] = [self.owner]
        else:
            # By this label Argo CD finds what an Application owns, and prunes it where nothing else owns it.
            del found["labels"][INSTANCE_LABEL]
        return found


def _texts_in(value: Any) -> Iterator[str]:
    """Yield every text in JSON-like data."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for entry in value.values():
            yield from _texts_in(entry)
    elif isinstance(value, Sequence):
        for entry in value:
            yield from _texts_in(entry)


def _without_sizes(storage: Mapping[str, Any]) -> dict[str, Any]:
    """Return `spec.storage` without the claims' sizes: a claim grows while its pods run."""
    found: dict[str, Any] = {}
    for name, volume in storage.items():
        if isinstance(volume, Mapping) and "claimTemplate" in volume:
            template = volume["claimTemplate"]
            spec = {key: entry for key, entry in template.get("spec", {}).items() if key != "resources"}
            volume = {**volume, "claimTemplate": {**template, "spec": spec}}
        found[name] = volume
    return found


def with_intent(manifest: Manifest, intent: str) -> Manifest:
    """Return the manifest with its intent hash as an annotation."""
    metadata = manifest["metadata"]
    return {
        **manifest,
        "metadata": {**metadata, "annotations": {**metadata.get("annotations", {}), INTENT_HASH: intent}},
    }
