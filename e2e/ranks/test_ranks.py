"""A peer with two processes has one identity, one policy and one pod."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from clusters import Namespace
from games import Game
from polling import until

pytestmark = pytest.mark.timeout(700)

COUNT = """
import contextlib, os
ranks = 0
for process in filter(str.isdigit, os.listdir("/proc")):
    with contextlib.suppress(OSError), open(f"/proc/{process}/environ", "rb") as file:  # a process may end meanwhile
        ranks += b"LOCAL_RANK=" in file.read()
print(ranks)
"""
"""Prints the number of a pod's processes that are ranks."""


def test_a_peer_of_two_ranks_plays_to_the_end(game: Callable[..., Game], namespace: Namespace) -> None:
    playing = game()
    # Not at Ready, which the status shows later: the game must not be over.
    until(playing.identities, 240, every=0.5, seen=namespace.describe)
    pod = playing.peers()[0]["metadata"]["name"]
    assert int(namespace.kubectl("exec", pod, "-c", "peer", "--", "python3", "-c", COUNT)) >= 2
    playing.wait("Complete", seconds=300)
    assert playing.round == 500
