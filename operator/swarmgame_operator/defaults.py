"""The installation's defaults for games: images, how they are pulled, and fields of all pods.

Filled from the operator's settings; plans read nothing else of them. A change does not affect running peers, because a
Job keeps its template.
"""

from __future__ import annotations

from dataclasses import dataclass

from swarmgame_api.pods import NO_POD_DEFAULTS, PodDefaults
from swarmgame_api.sampler import DEFAULT_IMAGE


@dataclass(frozen=True, slots=True)
class Defaults:
    """The defaults of an installation.

    Args:
        worker_image: of peers, bootnode and initializer, if `peers.image` is empty.
        gateway_image: holds `swarmgame-gateway`: the operator's own image.
        chain_image: anvil, for coordination in mode Dev.
        sampler_image: vLLM, for a game that generates with it without naming an image.
        image_pull_policy: empty: Kubernetes' default for the image's tag.
        image_pull_secrets: names of Secrets, expected in the games' namespaces.
        cluster_domain: suffix of `<service>.<namespace>.svc` in host names; empty: none.
        ipv6: whether the pods' addresses are of IPv6, alone or first.
        through_api_server: whether the operator reads pods through the API server's proxy.
        api_server_addresses: networks from which the API server then reaches pods; empty: any.
        pod_defaults: of all pods of all games; a game's `spec.podDefaults` override them.
    """

    worker_image: str = "ghcr.io/swarmgame/worker:latest"
    gateway_image: str = "ghcr.io/swarmgame/operator:latest"
    chain_image: str = "ghcr.io/swarmgame/chain:latest"
    sampler_image: str = DEFAULT_IMAGE
    image_pull_policy: str = ""
    image_pull_secrets: tuple[str, ...] = ()
    cluster_domain: str = ""
    ipv6: bool = False
    through_api_server: bool = False
    api_server_addresses: tuple[str, ...] = ()
    pod_defaults: PodDefaults = NO_POD_DEFAULTS
