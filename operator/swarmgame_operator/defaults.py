"""What an installation of the operator gives to every game that does not say otherwise: images, and how they are
pulled.

Filled from the operator's settings; the plan reads nothing else of them. Invariant: a change here never disturbs peers
that run: a Job keeps the template that it was made with.
"""

from __future__ import annotations

from dataclasses import dataclass

from swarmgame_api.sampler import DEFAULT_IMAGE


@dataclass(frozen=True, slots=True)
class Defaults:
    """An installation's choices.

    Args:
        worker_image: of peers, bootnode and initializer, where `peers.image` is empty.
        gateway_image: holds `swarmgame-gateway`: the operator's own image.
        chain_image: anvil, for coordination in mode Dev.
        sampler_image: vLLM, for a game that generates with it and names no image.
        image_pull_policy: empty: Kubernetes' own choice by the image's tag.
        image_pull_secrets: names of Secrets, expected in the games' namespaces.
        cluster_domain: what follows `<service>.<namespace>.svc` in names that outsiders of a namespace resolve; empty:
            none is added.
    """

    worker_image: str = "ghcr.io/swarmgame/worker:latest"
    gateway_image: str = "ghcr.io/swarmgame/operator:latest"
    chain_image: str = "ghcr.io/swarmgame/chain:latest"
    sampler_image: str = DEFAULT_IMAGE
    image_pull_policy: str = ""
    image_pull_secrets: tuple[str, ...] = ()
    cluster_domain: str = ""
