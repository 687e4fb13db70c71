"""Peers over torch.distributed meet at peer 0 by its name; if one is lost, all start again and resume."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from clusters import Namespace
from games import Game
from polling import until

pytestmark = pytest.mark.timeout(800)


def test_peers_of_a_fixed_group_meet_without_a_bootnode_and_resume_when_one_is_lost(
    game: Callable[..., Game], namespace: Namespace
) -> None:
    playing = game()
    playing.wait("Ready", seconds=180)
    playing.wait_for_round(3)
    assert not playing.pods("bootnode")
    until(lambda: playing.members(0) == 2, 120, every=0.5, seen=namespace.describe)
    known = until(lambda: found if len(found := playing.identities()) == 2 else {}, 60)

    lost = playing.peers()[1]["metadata"]["name"]
    namespace.kubectl("delete", "pod", lost, "--wait=false")
    until(lambda: playing.peers().get(1, {}).get("metadata", {}).get("name", lost) != lost, 90, seen=namespace.describe)
    until(lambda: playing.identities() == known, 120, every=0.5, seen=namespace.describe)
    until(lambda: playing.members(1) == 2, 180, every=0.5, seen=namespace.describe)
    played = playing.round
    playing.wait_for_round(played + 2)
