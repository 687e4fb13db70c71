"""Network policies: which pods may reach which. Created with `networkPolicy.mode: Isolated`; the cluster's network
must enforce them.

| pod | ingress from | egress to |
|---|---|---|
| peers, bootnode | each other (p2p); operator, Prometheus (http) | DNS, each other, gateway, chain, vLLM, trackers |
| initializer | none | DNS; port 443 of any address if the model is on the hub |
| gateway | peers, operator, Prometheus | DNS, Dev chain; any address in mode External (a Secret holds it) |
| chain (Dev) | gateway, peers | none |

The peers of a closed swarm (TorchDistributed) reach each other on any port: gloo listens on ports of the kernel's
choice. A game that is exposed, or that joins a remote swarm, has remote members: its peers and bootnode accept any
address on the p2p port, and reach any address over TCP. A vLLM server that is named by its url, or a tracker that is a
service (wandb), is reached on its port at any address, because a policy contains no host names. Policies only add up,
so an author can allow more with another one.
"""

from __future__ import annotations

from urllib.parse import urlsplit

from swarmgame_operator.plan import initializer
from swarmgame_operator.plan.game_context import CHAIN_PORT, GATEWAY_PORT, HTTP_PORT, ROLE_LABEL, GameContext
from swarmgame_operator.plan.plan_types import Child, Manifest

DNS: Manifest = {"ports": [{"protocol": "UDP", "port": 53}, {"protocol": "TCP", "port": 53}]}
ANY_TCP: list[Manifest] = [{"protocol": "TCP", "port": 1, "endPort": 65_535}]
ANYWHERE_TCP: Manifest = {"ports": ANY_TCP}
WATCHERS: list[Manifest] = [
    {
        "namespaceSelector": {},
        "podSelector": {
            "matchLabels": {"app.kubernetes.io/name": "swarmgame", "app.kubernetes.io/component": "operator"}
        },
    },
    {"namespaceSelector": {}, "podSelector": {"matchLabels": {"app.kubernetes.io/name": "prometheus"}}},
]


def network_policies(game: GameContext) -> tuple[Child, ...]:
    if game.spec.network_policy.mode == "None":
        return ()
    found = [_peers(game)]
    if _uses_hub(game):
        found.append(_hub(game))
    if game.has_chain:
        found.append(_gateway(game))
    if game.spec.coordination.mode == "Dev":
        found.append(_chain(game))
    return tuple(found)


def _peers(game: GameContext) -> Child:
    swarm, p2p = (
        _pods(game, "bootnode", "peer"),
        ANY_TCP if game.closed else _tcp(game.spec.communication.port),
    )
    ingress = [
        {"ports": p2p} if game.exposed else {"from": swarm, "ports": p2p},
        {"from": WATCHERS, "ports": _tcp(HTTP_PORT)},
    ]
    egress = [DNS, {"to": swarm, "ports": p2p}]
    if game.has_chain:
        egress.append({"to": _pods(game, "gateway"), "ports": _tcp(GATEWAY_PORT)})
    if game.spec.coordination.mode == "Dev":
        egress.append({"to": _pods(game, "chain"), "ports": _tcp(CHAIN_PORT)})
    if game.vllm is not None and game.vllm.url:
        egress.append({"ports": _tcp(_port_of(game.vllm.url))})
    ports = {tracker.port for tracker in game.spec.observability.trackers if tracker.port is not None}
    egress += [{"ports": _tcp(port)} for port in sorted(ports)]
    if game.exposed:
        egress.append(ANYWHERE_TCP)
    return _policy(game, "peers", "peer", ("bootnode", "initializer", "peer"), ingress, egress)


def _hub(game: GameContext) -> Child:
    roles = ("peer",) if initializer.in_the_pod(game) else ("initializer",)
    return _policy(game, "hub", "initializer", roles, None, [{"ports": _tcp(443)}])


def _gateway(game: GameContext) -> Child:
    ingress = [{"from": [*_pods(game, "peer"), *WATCHERS], "ports": _tcp(GATEWAY_PORT)}]
    node = (
        {"to": _pods(game, "chain"), "ports": _tcp(CHAIN_PORT)}
        if game.spec.coordination.mode == "Dev"
        else ANYWHERE_TCP
    )
    return _policy(game, "gateway", "gateway", ("gateway",), ingress, [DNS, node])


def _chain(game: GameContext) -> Child:
    ingress = [{"from": _pods(game, "gateway", "peer"), "ports": _tcp(CHAIN_PORT)}]
    return _policy(game, "chain", "chain", ("chain",), ingress, [])


def _uses_hub(game: GameContext) -> bool:
    return game.spec.model is not None and game.spec.model.uri.startswith("hf://")


def _pods(game: GameContext, *roles: str) -> list[Manifest]:
    return [{"podSelector": {"matchLabels": game.selector(role)}} for role in roles]


def _port_of(url: str) -> int:
    found = urlsplit(url)
    return found.port or (443 if found.scheme == "https" else 80)


def _tcp(port: int) -> list[Manifest]:
    return [{"protocol": "TCP", "port": port}]


def _policy(
    game: GameContext,
    suffix: str,
    role: str,
    roles: tuple[str, ...],
    ingress: list[Manifest] | None,
    egress: list[Manifest],
) -> Child:
    selector = game.selector(role)
    selector.pop(ROLE_LABEL)
    spec: Manifest = {
        "podSelector": {
            "matchLabels": selector,
            "matchExpressions": [{"key": ROLE_LABEL, "operator": "In", "values": list(roles)}],
        },
        "policyTypes": ["Egress"] if ingress is None else ["Ingress", "Egress"],
        "egress": egress,
    }
    if ingress is not None:
        spec["ingress"] = ingress
    metadata = game.metadata(suffix, role)
    return Child({"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": metadata, "spec": spec})
