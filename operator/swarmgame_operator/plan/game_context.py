"""A valid game and what its children share: names, labels, owner, and the hash of the manifest that a child was
written from.

A child's name is the game's with a role, so people find it. No name is longer than 63 characters, because the game's
has at most 52 and the longest suffix 11.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from swarmgame_api.manifest import API_VERSION, KIND, SwarmGame, SwarmGameSpec
from swarmgame_api.resource import GameResource
from swarmgame_api.sampler import VllmOptions
from swarmgame_operator.defaults import Defaults
from swarmgame_operator.plan.plan_types import Manifest

GAME_LABEL = "swarmgame.dev/game"
ROLE_LABEL = "swarmgame.dev/role"
INTENT_HASH = "swarmgame.dev/intent-hash"
TEMPLATE_HASH = "swarmgame.dev/template-hash"

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
    """

    resource: GameResource
    manifest: SwarmGame
    defaults: Defaults
    bootnode_peer: str = ""

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
    def template_hash(self) -> str:
        """The hash of what the author specified about the pods, without the number of peers, deadlines and the
        operator's version.
        """
        data = self.spec_data
        peers = {
            key: entry
            for key, entry in data.get("peers", {}).items()
            if key not in ("replicas", "minReplicas", "maxReplicas")
        }
        communication = {key: entry for key, entry in data.get("communication", {}).items() if key != "initialPeers"}
        failure = {key: entry for key, entry in data.get("failurePolicy", {}).items() if key == "backoffLimitPerPeer"}
        storage_data = data.get("storage", {})
        checkpoints = {
            key: entry for key, entry in storage_data.get("checkpoints", {}).items() if key != "retentionPolicy"
        }
        trackers = data.get("observability", {}).get("trackers")
        return digest(
            {
                # Only where there are any: an operator that knows this field restarts no game without it.
                **({"trackers": trackers} if trackers else {}),
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
            "app.kubernetes.io/instance": self.resource.name,
            "app.kubernetes.io/component": role,
            "app.kubernetes.io/part-of": "swarmgame",
            "app.kubernetes.io/managed-by": "swarmgame-operator",
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
        found: Manifest = {
            "name": self.name(suffix),
            "namespace": self.namespace,
            "labels": {**(labels or {}), **self.labels(role)},
        }
        if annotations:
            found["annotations"] = dict(annotations)
        if owned:
            found["ownerReferences"] = [self.owner]
        return found


def with_intent(manifest: Manifest, intent: str) -> Manifest:
    """Return the manifest with its intent hash as an annotation."""
    metadata = manifest["metadata"]
    return {
        **manifest,
        "metadata": {**metadata, "annotations": {**metadata.get("annotations", {}), INTENT_HASH: intent}},
    }
