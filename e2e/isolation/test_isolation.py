"""`networkPolicy: Isolated`, the default, where it is enforced: a game plays, and nothing else reaches its pods.

The tests of the other folders play under the same policies: the quickstart in `learning`, a chain in `dev_chain`, a
peer from outside in `outsider`. Here is what the policies must refuse.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from clusters import Cluster, Namespace
from games import Game, Installation, play
from pods import pod, reached_by_pod, reached_from

pytestmark = pytest.mark.timeout(900)

SERVE = """
import http.server, threading
for port in (443, 8000):
    server = http.server.ThreadingHTTPServer(("", port), http.server.SimpleHTTPRequestHandler)
    threading.Thread(target=server.serve_forever).start()
"""
"""A pod that is no game's, on the hub's port and on another. containerd lets any user listen on low ports."""


@pytest.fixture
def other(cluster: Cluster, namespace: Namespace) -> str:
    """Return the address of a server that no policy selects."""
    if cluster.kind == "current" and os.environ.get("SWARMGAME_E2E_ENFORCES") != "true":
        pytest.skip("set SWARMGAME_E2E_ENFORCES=true if this cluster's network enforces NetworkPolicies")
    ready = {"container": {"readinessProbe": {"tcpSocket": {"port": 443}, "periodSeconds": 1}}}
    namespace.apply(pod("other", cluster.images["operator"], "python3", "-c", SERVE, **ready))
    namespace.kubectl("wait", "pod/other", "--for=condition=Ready", "--timeout=180s", seconds=200.0)
    return str(namespace.get("pod", "other")["status"]["podIP"])


def address_of(game: Game, role: str) -> str:
    return str(game.pods(role)[0]["status"]["podIP"])


def test_a_game_plays_and_only_its_own_pods_reach_each_other(
    game: Callable[..., Game], namespace: Namespace, other: str
) -> None:
    playing = game()
    playing.wait("Registered", reason="AllRegistered", seconds=300)  # so that both pods run
    playing.wait_for_round(2)
    peer, second = (playing.peers()[index]["metadata"]["name"] for index in (0, 1))
    p2p = f"{namespace.get('pod', second)['status']['podIP']}:31000"
    bootnode = f"{address_of(playing, 'bootnode')}:31000"
    gateway = f"{address_of(playing, 'gateway')}:8645"
    chain = f"{address_of(playing, 'chain')}:8545"
    inside = [p2p, bootnode, gateway, chain]
    status = f"{p2p.partition(':')[0]}:8080"
    anywhere = [f"{other}:443", f"{other}:8000"]

    # A pod without a policy reaches the other server, so the network works; the game's pods refuse it.
    assert reached_by_pod(namespace, {}, [*inside, status, *anywhere], expected=anywhere) == anywhere
    assert reached_from(namespace, peer, "peer", [*inside, *anywhere], expected=inside) == inside
    gateway_pod = playing.pods("gateway")[0]["metadata"]["name"]
    container = playing.pods("gateway")[0]["spec"]["containers"][0]["name"]
    assert reached_from(namespace, gateway_pod, container, [chain, p2p, *anywhere], expected=[chain]) == [chain]
    assert playing.of_peer(0)["peer"]  # the API server's proxy, as the operator and kubectl use it
    round = playing.round
    playing.wait_for_round(round + 2)


def test_pods_that_fetch_a_model_from_the_hub_reach_its_port_and_no_other(
    operator: Installation, namespace: Namespace, other: str
) -> None:
    """The game is suspended: its policies exist without pods, and a probe has the labels of a pod that they select."""
    play(namespace, Path(__file__).parent / "hub.yaml")
    namespace.kubectl("wait", "--for=create", "networkpolicy/hub-hub", "--timeout=120s", seconds=150.0)
    selector = namespace.get("networkpolicy", "hub-hub")["spec"]["podSelector"]
    (roles,) = selector["matchExpressions"]
    labels = {**selector["matchLabels"], roles["key"]: roles["values"][0]}
    addresses = [f"{other}:443", f"{other}:8000"]
    assert reached_by_pod(namespace, labels, addresses, expected=addresses[:1]) == addresses[:1]
