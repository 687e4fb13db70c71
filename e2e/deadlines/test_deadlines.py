"""Deadlines before and during a run, and the time to live afterwards."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from clusters import Namespace
from games import PLURAL, Game
from polling import until

pytestmark = pytest.mark.timeout(500)


def test_a_game_that_does_not_start_in_time_fails(game: Callable[..., Game]) -> None:
    playing = game(
        preRunningDeadlineSeconds=5, peers={"resources": {"limits": {"nvidia.com/gpu": "1", "memory": "3Gi"}}}
    )
    playing.wait("Failed", reason="PreRunningDeadlineExceeded", seconds=60)
    until(lambda: not playing.pods(), 60)


def test_a_game_that_runs_too_long_fails_and_is_deleted_after_its_time_to_live(
    game: Callable[..., Game], namespace: Namespace
) -> None:
    playing = game(activeDeadlineSeconds=60, ttlSecondsAfterFinished=45)  # long enough to see that it has failed
    playing.wait("Failed", reason="DeadlineExceeded", seconds=200)
    until(lambda: not playing.pods(), 120, seen=namespace.describe)
    until(
        lambda: not namespace.kubectl("get", PLURAL, playing.name, "--ignore-not-found", "-o", "name"),
        120,
        seen=namespace.describe,
    )
