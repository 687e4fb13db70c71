"""A game is scaled while it runs, and every peer keeps its identity."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from clusters import Namespace
from games import Game
from polling import until

pytestmark = pytest.mark.timeout(600)


def test_two_peers_become_four_then_one_then_none_and_keep_their_identities(
    game: Callable[..., Game], namespace: Namespace
) -> None:
    playing = game()
    playing.wait_for_round(2)
    two = _known(playing, 2)

    namespace.kubectl("scale", "sg", playing.name, "--replicas=4")
    four = _known(playing, 4)
    assert {index: four[index] for index in two} == two
    assert len(set(four.values())) == 4
    for index in (2, 3):  # a peer answers before it is ready
        playing.wait_for_peer(index)
    until(lambda: playing.status["peers"]["ready"] == 4, 60, seen=namespace.describe)
    before = playing.round
    playing.wait_for_round(before + 2)

    namespace.kubectl("scale", "sg", playing.name, "--replicas=1")
    until(lambda: set(playing.peers()) == {0}, 60, seen=namespace.describe)
    playing.wait_for_round(playing.round + 2)
    assert _known(playing, 1) == {0: two[0]}
    assert playing.condition("Failed").get("status") != "True"

    namespace.kubectl("scale", "sg", playing.name, "--replicas=0")
    playing.wait("Suspended", reason="ScaledToZero", seconds=60)
    until(lambda: not playing.pods(), 60)
    rested = playing.round

    namespace.kubectl("scale", "sg", playing.name, "--replicas=2")
    playing.wait("Suspended", "False", seconds=60)
    assert _known(playing, 2) == two
    playing.wait_for_round(rested + 2)


def _known(playing: Game, count: int) -> dict[int, str]:
    """Return the peer ids by index, once this many peers answer."""

    def known() -> dict[int, str]:
        found = {index: peer for index, peer in playing.identities().items() if peer}
        return found if len(found) == count else {}

    return until(known, 150, every=0.5, seen=playing.namespace.describe)
