"""A suspended game has no pods, and resumes at the next round."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from clusters import Namespace
from games import Game
from polling import until

pytestmark = pytest.mark.timeout(600)


def test_a_suspended_game_resumes_at_the_next_round_with_its_weights(
    game: Callable[..., Game], namespace: Namespace
) -> None:
    playing = game()
    playing.wait_for_round(4)
    playing.patch({"suspend": True})
    playing.wait("Suspended", reason="SuspendedByUser", seconds=60)
    until(lambda: not playing.pods(), 60, seen=namespace.describe)
    kept = namespace.get("secret", f"{playing.name}-peer-keys")["data"]
    assert namespace.get("pvc", f"{playing.name}-checkpoints")["status"]["phase"] == "Bound"
    played = playing.round

    playing.patch({"game": {"maxRounds": 90_000}, "suspend": True})  # spec.game may change only now
    playing.patch({"suspend": False})
    playing.wait("Suspended", "False", "Resumed", seconds=60)
    playing.wait("Ready", seconds=150)
    resumed = playing.wait_for_peer(0)
    assert resumed["rounds_finished"] >= played - 1, f"a peer restarted from an earlier round: {resumed}"
    assert resumed["max_rounds"] == 90_000
    playing.wait_for_round(played + 2)
    assert namespace.get("secret", f"{playing.name}-peer-keys")["data"] == kept


def test_spec_game_cannot_change_while_the_game_runs(game: Callable[..., Game], namespace: Namespace) -> None:
    playing = game(suspend=False)
    done = namespace.cluster.try_kubectl(
        "--namespace",
        namespace.name,
        "patch",
        "sg",
        playing.name,
        "--type=merge",
        "-p",
        '{"spec": {"game": {"seed": 8}}}',
    )
    assert done.returncode != 0
    assert "suspend" in done.stderr
