"""Network policies: who may talk to whom. Made with `networkPolicy.mode: Isolated`, where the cluster's network
enforces them.

| who | is reached by | reaches |
|---|---|---|
| peers, bootnode | one another on p2p; the operator and Prometheus on http | DNS, one another, the gateway; in mode Dev
the chain; a vLLM server |
| whoever initializes | nobody | DNS, and port 443 anywhere, for a model of the hub |
| gateway | peers, the operator, Prometheus | DNS; in mode Dev the chain, in mode External any address: where the RPC is
stands in a Secret |
| chain (Dev) | gateway, peers | nothing |

The peers of a closed world (TorchDistributed) reach one another on any port: gloo listens where the kernel lets it.
A game that is exposed, or that joins a swarm elsewhere, has members that may live anywhere: its peers and bootnode are
reached by anyone on the p2p port, and reach any address over TCP. Where a vLLM server is named by its url, its port is
reached at any address: a policy knows no names. Invariant: policies only add up, so an author can allow more with one
of their own.
"""

from __future__ import annotations

from urllib.parse import urlsplit

from swarmgame_operator.plan import initializer
from swarmgame_operator.plan.outcome import Child, Manifest
from swarmgame_operator.plan.setting import CHAIN_PORT, GATEWAY_PORT, HTTP_PORT, ROLE_LABEL, Setting

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


def network_policies(setting: Setting) -> tuple[Child, ...]:
    if setting.spec.network_policy.mode == "None":
        return ()
    found = [_peers(setting)]
    if _fetches(setting):
        found.append(_hub(setting))
    if setting.has_chain:
        found.append(_gateway(setting))
    if setting.spec.coordination.mode == "Dev":
        found.append(_chain(setting))
    return tuple(found)


def _peers(setting: Setting) -> Child:
    swarm, p2p = (
        _pods(setting, "bootnode", "peer"),
        ANY_TCP if setting.closed else _tcp(setting.spec.communication.port),
    )
    ingress = [
        {"ports": p2p} if setting.exposed else {"from": swarm, "ports": p2p},
        {"from": WATCHERS, "ports": _tcp(HTTP_PORT)},
    ]
    egress = [DNS, {"to": swarm, "ports": p2p}]
    if setting.has_chain:
        egress.append({"to": _pods(setting, "gateway"), "ports": _tcp(GATEWAY_PORT)})
    if setting.spec.coordination.mode == "Dev":
        egress.append({"to": _pods(setting, "chain"), "ports": _tcp(CHAIN_PORT)})
    if setting.vllm is not None and setting.vllm.url:
        egress.append({"ports": _tcp(_port_of(setting.vllm.url))})
    if setting.exposed:
        egress.append(ANYWHERE_TCP)
    return _policy(setting, "peers", "peer", ("bootnode", "initializer", "peer"), ingress, egress)


def _hub(setting: Setting) -> Child:
    roles = ("peer",) if initializer.in_the_pod(setting) else ("initializer",)
    return _policy(setting, "hub", "initializer", roles, None, [{"ports": _tcp(443)}])


def _gateway(setting: Setting) -> Child:
    ingress = [{"from": [*_pods(setting, "peer"), *WATCHERS], "ports": _tcp(GATEWAY_PORT)}]
    node = (
        {"to": _pods(setting, "chain"), "ports": _tcp(CHAIN_PORT)}
        if setting.spec.coordination.mode == "Dev"
        else ANYWHERE_TCP
    )
    return _policy(setting, "gateway", "gateway", ("gateway",), ingress, [DNS, node])


def _chain(setting: Setting) -> Child:
    ingress = [{"from": _pods(setting, "gateway", "peer"), "ports": _tcp(CHAIN_PORT)}]
    return _policy(setting, "chain", "chain", ("chain",), ingress, [])


def _fetches(setting: Setting) -> bool:
    return setting.spec.model is not None and setting.spec.model.uri.startswith("hf://")


def _pods(setting: Setting, *roles: str) -> list[Manifest]:
    return [{"podSelector": {"matchLabels": setting.selector(role)}} for role in roles]


def _port_of(url: str) -> int:
    found = urlsplit(url)
    return found.port or (443 if found.scheme == "https" else 80)


def _tcp(port: int) -> list[Manifest]:
    return [{"protocol": "TCP", "port": port}]


def _policy(
    setting: Setting,
    ending: str,
    role: str,
    roles: tuple[str, ...],
    ingress: list[Manifest] | None,
    egress: list[Manifest],
) -> Child:
    selector = setting.selector(role)
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
    metadata = setting.metadata(ending, role)
    return Child({"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": metadata, "spec": spec})
