"""A peer with two processes has one identity, one policy and one pod."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from clusters import Namespace
from games import Game

pytestmark = pytest.mark.timeout(500)

COUNT = """
import os
ranks = 0
for process in filter(str.isdigit, os.listdir("/proc")):
    with open(f"/proc/{process}/environ", "rb") as file:
        ranks += b"LOCAL_RANK=" in file.read()
print(ranks)
"""
"""Prints the number of a pod's processes that are ranks."""


def test_a_peer_of_two_ranks_plays_to_the_end(game: Callable[..., Game], namespace: Namespace) -> None:
    playing = game()
    playing.wait("Ready", seconds=240)
    pod = playing.peers()[0]["metadata"]["name"]
    assert int(namespace.kubectl("exec", pod, "-c", "peer", "--", "python3", "-c", COUNT)) >= 2
    playing.wait("Complete", seconds=300)
    assert playing.round == 500
