"""An upgrade of the chart does not affect a running game."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from clusters import Namespace
from games import Game, Installation
from polling import until

pytestmark = pytest.mark.timeout(900)


def test_an_upgrade_of_the_chart_does_not_restart_a_running_game(
    game: Callable[..., Game], operator: Installation, namespace: Namespace
) -> None:
    playing = game()
    playing.wait("Ready", seconds=180)
    playing.wait_for_round(2)
    pods = {pod["metadata"]["uid"] for pod in playing.pods()}
    before = {pod["metadata"]["uid"] for pod in operator.operator_pods()}
    try:
        # Another operator, and another default image for peers: neither restarts running peers.
        operator.upgrade("--set", "operator.logLevel=DEBUG", "--set", "games.workerImage.tag=another")
        until(lambda: not before & {pod["metadata"]["uid"] for pod in operator.operator_pods()}, 120)
        played = playing.round
        playing.wait_for_round(played + 2)
        assert {pod["metadata"]["uid"] for pod in playing.pods()} == pods
    finally:
        operator.upgrade()
