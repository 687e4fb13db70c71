"""The devices that a peer's pod asks for: GPUs, MIG devices, other extended resources, and claims of dynamic resource
allocation. They decide how many processes a peer has with `processesPerPeer: auto`.

| the peer's container has | processes |
|---|---|
| `…/gpu` | as many as GPUs |
| one `nvidia.com/mig-…` | 1; several are refused, because CUDA shows a process one MIG device only |
| other devices, or claims | the CUDA devices that PyTorch sees in the pod; with none, the peer says what to set |
| nothing | 1 |
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from swarmgame_api.peers import Resources
from swarmgame_operator.plan.game_context import GameContext
from swarmgame_operator.plan.plan_types import Manifest

GPU_SUFFIX = "/gpu"
MIG_PREFIX = "nvidia.com/mig-"
GPU_TAINT = "nvidia.com/gpu"
PEER = "peer"


def gpus(game: GameContext) -> int:
    """Return the GPUs of a peer's own container, by its resources."""
    return sum(number for name, number in _devices(game.spec.peers.resources) if name.endswith(GPU_SUFFIX))


def mig_devices(game: GameContext) -> int:
    """Return the MIG devices of a peer's own container."""
    return sum(number for name, number in _devices(game.spec.peers.resources) if name.startswith(MIG_PREFIX))


def uncounted_devices(game: GameContext) -> tuple[str, ...]:
    """Return the names of devices and claims of a peer's container that only the pod can count."""
    names = [name for name, _ in _devices(game.spec.peers.resources) if _is_other(name)]
    return tuple(sorted({*names, *_claims(game)}))


def processes(game: GameContext) -> str:
    """Return a peer's processes; `auto` if only the pod can count them."""
    given = game.spec.peers.processes_per_peer
    if given != "auto":
        return str(given)
    found = gpus(game) or mig_devices(game)
    return str(found) if found else "auto"


def device_problem(game: GameContext) -> str:
    """Return why `auto` cannot be right, with what to set; empty if it can."""
    peers = game.spec.peers
    found = mig_devices(game)
    if peers.processes_per_peer != "auto" or found == 0 or (found == 1 and gpus(game) == 0):
        return ""
    what = f"{found} MIG devices" if gpus(game) == 0 else "MIG devices beside GPUs"
    return (
        f"spec.peers.resources has {what} with spec.peers.processesPerPeer auto; expected one MIG device a peer, with "
        "more peers, or processesPerPeer as a number: CUDA shows a process one MIG device only"
    )


def tolerations(game: GameContext) -> list[Manifest]:
    """Return the tolerations of the taints that nodes with these devices often have, for peers and their initializer.

    The key of other devices is their name, as Kubernetes' admission plugin ExtendedResourceToleration has it.
    """
    server = game.vllm_sidecar
    found = [*_devices(game.spec.peers.resources), *(_devices(server.resources) if server is not None else ())]
    gpu = any(name.endswith(GPU_SUFFIX) or name.startswith(MIG_PREFIX) for name, _ in found)
    keys = [*([GPU_TAINT] if gpu else []), *sorted({name for name, _ in found if _is_other(name)})]
    return [{"key": key, "operator": "Exists", "effect": "NoSchedule"} for key in keys]


def _is_other(name: str) -> bool:
    return not name.endswith(GPU_SUFFIX) and not name.startswith(MIG_PREFIX)


def _devices(resources: Resources) -> Iterator[tuple[str, int]]:
    """Yield the extended resources that are more than zero: their names have a domain."""
    for name, amount in {**resources.requests, **resources.limits}.items():
        if "/" in name and amount.isascii() and amount.isdigit() and int(amount) > 0:
            yield name, int(amount)


def _claims(game: GameContext) -> Iterator[str]:
    """Yield the resource claims that the author's template gives the peer's container."""
    for container in _list(game.spec.peers.pod_template.spec, "containers"):
        if isinstance(container, Mapping) and container.get("name") == PEER:
            resources = container.get("resources")
            for claim in _list(resources, "claims"):
                yield f"the claim {claim.get('name')}" if isinstance(claim, Mapping) else "a claim"


def _list(value: object, key: str) -> list[object]:
    found = value.get(key) if isinstance(value, Mapping) else None
    return found if isinstance(found, list) else []
