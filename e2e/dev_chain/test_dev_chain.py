"""A game with its own chain in the cluster: peers are registered, reports are final, and the status shows both."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from clusters import Namespace
from games import Game
from polling import until

pytestmark = pytest.mark.timeout(600)


def test_peers_are_registered_and_the_chain_follows_the_rounds_of_the_swarm(
    game: Callable[..., Game], namespace: Namespace
) -> None:
    playing = game()
    playing.wait("Registered", reason="AllRegistered", seconds=300)  # one registered peer is enough for True
    assert playing.status["peers"]["registered"] == 2
    playing.wait_for_round(5, seconds=240)
    until(lambda: playing.status["coordination"]["round"] >= 3, 90, seen=lambda: playing.status)
    coordination = playing.status["coordination"]
    assert coordination["chainId"] == 31337
    assert coordination["lastObservedBlock"] > 0
    until(lambda: _final_reports(playing) >= 2, 90, seen=namespace.describe)
    playing.wait("Complete", seconds=300)
    until(lambda: playing.status["coordination"]["round"] >= 29, 90, seen=lambda: playing.status)


def _final_reports(playing: Game) -> int:
    """Return the number of reports that the gateway counts as final."""
    (gateway,) = playing.pods("gateway")
    path = f"/api/v1/namespaces/{playing.namespace}/pods/{gateway['metadata']['name']}:8645/proxy/metrics"
    lines = playing.namespace.cluster.kubectl("get", "--raw", path).splitlines()
    counted = [
        line
        for line in lines
        if line.startswith("swarmgame_gateway_messages_total{") and 'kind="reports"' in line and 'state="final"' in line
    ]
    return int(sum(float(line.rpartition(" ")[2]) for line in counted))
