"""Progress: rounds, the remaining time, and stalls."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from plan_fixtures import (
    DEFAULTS,
    NOW,
    heard,
    later,
    peer_pod,
    ready_pod,
    reported,
    running,
    settled,
    valid_game,
    with_status,
)

from swarmgame_api.resource import GameResource
from swarmgame_operator.plan import Plan, build_plan
from swarmgame_operator.snapshot import Observed, PollFacts, ProgressFacts


def with_progress(observed: Observed, rounds: int, seconds: float, **fields: Any) -> Observed:
    """Return the snapshot `seconds` after the start, when a peer reports that it has just finished so many rounds."""
    moment = NOW + timedelta(seconds=seconds)
    facts = ProgressFacts(moment, rounds_finished=rounds, max_rounds=100, round_finished=moment, **fields)
    return replace(observed, now=moment, progress=facts)


def play(resource: GameResource, observed: Observed, *steps: tuple[int, float]) -> tuple[GameResource, Plan]:
    """Plan at each (rounds, seconds)."""
    found = build_plan(resource, observed, DEFAULTS)
    for rounds, seconds in steps:
        resource = with_status(resource, found.status)
        found = build_plan(resource, with_progress(observed, rounds, seconds), DEFAULTS)
    return with_status(resource, found.status), found


def test_progress_is_that_of_a_peers_answer() -> None:
    resource, observed = running(valid_game())
    seen = with_progress(
        observed, 41, 10, stage=2, metrics={"reward": 0.421875, "entropy": float("nan"), "kl": 12345678.0}
    )
    progress = build_plan(resource, seen, DEFAULTS).status.progress
    assert (progress.round, progress.stage, progress.max_rounds, progress.percentage) == (41, 2, 100, 41)
    assert [(each.name, each.value) for each in progress.metrics] == [("kl", "1.23457e+07"), ("reward", "0.421875")]
    assert progress.last_updated_time == "2026-01-31T12:00:10Z"


def test_one_report_gives_no_estimate() -> None:
    resource, observed = settled(valid_game())
    assert play(resource, observed, (10, 100.0))[1].status.progress.estimated_remaining_seconds is None


def test_the_estimate_follows_from_the_rounds_before() -> None:
    _, found = play(*running(valid_game()), (10, 100.0), (20, 200.0))
    assert found.status.progress.estimated_remaining_seconds == 800


def test_an_estimate_follows_slowly_when_rounds_become_slower() -> None:
    _, found = play(*running(valid_game()), (10, 100.0), (20, 200.0), (30, 500.0))
    # 10 s a round, then 30: 0.7 * 10 + 0.3 * 30 = 16 s for each of 70 rounds.
    assert found.status.progress.estimated_remaining_seconds == 1_120


def test_an_estimate_stays_while_no_round_ends() -> None:
    resource, found = play(*running(valid_game()), (10, 100.0), (20, 200.0))
    _, observed = running(valid_game())
    waiting = replace(with_progress(observed, 20, 200.0), now=NOW + timedelta(seconds=205))
    again = build_plan(resource, waiting, DEFAULTS)
    assert again.status.progress == found.status.progress


def test_a_suspension_is_not_a_slow_round() -> None:
    resource, observed = running(valid_game())
    resource, _ = play(resource, observed, (10, 100.0), (20, 200.0))
    stopped = build_plan(valid_game({"suspend": True}, status=resource.status), later(observed, 210), DEFAULTS)
    resumed = build_plan(valid_game(status=stopped.status), later(observed, 90_000), DEFAULTS)
    found = build_plan(with_status(resource, resumed.status), with_progress(observed, 21, 90_010), DEFAULTS)
    assert found.status.progress.estimated_remaining_seconds == 790


def test_a_peer_that_lags_a_round_behind_the_last_report_does_not_lower_the_round() -> None:
    _, found = play(*running(valid_game()), (20, 200.0), (19, 210.0))
    assert found.status.progress.round == 20
    assert found.status.progress.last_updated_time == "2026-01-31T12:03:20Z"


def test_the_round_of_a_game_that_lost_its_checkpoints_goes_back() -> None:
    _, found = play(*running(valid_game()), (20, 200.0), (0, 210.0))
    assert (found.status.progress.round, found.status.progress.percentage) == (0, 0)


def test_more_rounds_than_the_game_has_are_all_of_them() -> None:
    _, found = play(*running(valid_game()), (250, 10.0))
    assert (found.status.progress.round, found.status.progress.percentage) == (100, 100)


def test_a_peer_whose_clock_is_ahead_does_not_put_the_status_into_the_future() -> None:
    resource, observed = running(valid_game())
    seen = with_progress(observed, 5, 10)
    assert seen.progress is not None
    seen = replace(seen, progress=replace(seen.progress, round_finished=NOW + timedelta(days=1)))
    assert build_plan(resource, seen, DEFAULTS).status.progress.last_updated_time == "2026-01-31T12:00:10Z"


def test_an_estimate_is_at_most_the_largest_number_of_a_status() -> None:
    game = valid_game().game
    assert game is not None
    spec = {"game": {**game.spec.game.model_dump(mode="json", by_alias=True, exclude_none=True), "maxRounds": 10**9}}
    _, found = play(*running(valid_game(spec)), (10, 100.0), (20, 200.0), (21, 300.0))
    assert found.status.progress.estimated_remaining_seconds == 2**31 - 1


def test_a_peer_whose_clock_is_far_ahead_lengthens_no_estimate() -> None:
    resource, observed = running(valid_game())
    resource, _ = play(resource, observed, (10, 100.0))
    seen = with_progress(observed, 20, 200.0)
    assert seen.progress is not None
    seen = replace(seen, progress=replace(seen.progress, round_finished=NOW + timedelta(days=360_000)))
    assert build_plan(resource, seen, DEFAULTS).status.progress.estimated_remaining_seconds == 800


def test_a_checkpoint_of_no_round_is_none() -> None:
    resource, observed = running(valid_game())
    resource = with_status(
        resource, build_plan(resource, with_progress(observed, 10, 50, checkpoint=10), DEFAULTS).status
    )
    found = build_plan(resource, with_progress(observed, 12, 70, checkpoint=-1), DEFAULTS).status
    assert found.checkpoint == resource.status.checkpoint


def test_a_checkpoint_is_dated_by_its_first_report() -> None:
    resource, observed = running(valid_game())
    resource = with_status(
        resource, build_plan(resource, with_progress(observed, 10, 50, checkpoint=10), DEFAULTS).status
    )
    found = build_plan(resource, with_progress(observed, 12, 70, checkpoint=10), DEFAULTS).status.checkpoint
    assert found is not None
    assert (found.round, found.time) == (10, "2026-01-31T12:00:50Z")


STALLS: list[tuple[dict[str, Any], float, bool]] = [
    ({}, 299, False),
    ({}, 301, True),  # five minutes at least
    ({"game": {"stageDeadlineSeconds": 600}}, 1_199, False),
    ({"game": {"stageDeadlineSeconds": 600}}, 1_201, True),  # twice all deadlines of a round
]


@pytest.mark.parametrize(("spec", "waiting", "expected"), STALLS)
def test_a_game_stalls_when_no_round_ends_for_longer_than_rounds_may_take(
    spec: dict[str, Any], waiting: float, expected: bool
) -> None:
    game = valid_game().game
    assert game is not None
    data = game.spec.game.model_dump(mode="json", by_alias=True, exclude_none=True)
    data["progression"]["stageDeadlineSeconds"] = spec.get("game", {}).get("stageDeadlineSeconds", 120)
    resource, observed = running(valid_game({"game": data}))
    found = build_plan(resource, later(heard(observed), waiting), DEFAULTS)
    assert (reported(found)["Progressing"] == ("False", "Stalled")) is expected


def test_constantly_slow_rounds_are_no_stall() -> None:
    resource, observed = running(valid_game())
    resource, _ = play(resource, observed, (10, 1_000.0), (20, 2_000.0))
    observed = with_progress(observed, 20, 2_000.0)

    def at(seconds: float) -> tuple[str, str]:
        return reported(build_plan(resource, later(observed, seconds - 2_000), DEFAULTS))["Progressing"]

    assert at(2_999) == ("True", "RoundAdvancing")
    assert at(3_001) == ("False", "Stalled")


def test_a_game_is_requeued_for_when_it_would_stall() -> None:
    resource, observed = running(valid_game())
    observed = heard(observed)
    wait = build_plan(resource, observed, DEFAULTS).requeue_after
    assert wait is not None
    assert reported(build_plan(resource, later(observed, wait), DEFAULTS))["Progressing"] == ("False", "Stalled")


def test_a_round_that_ends_after_a_stall_ends_the_stall() -> None:
    resource, observed = running(valid_game())
    stalled = build_plan(resource, later(heard(observed), 1_000), DEFAULTS)
    assert stalled.requeue_after is None, "time alone changes nothing any more"
    resource = with_status(resource, stalled.status)
    assert reported(resource.status)["Progressing"] == ("False", "Stalled")
    assert reported(build_plan(resource, with_progress(observed, 1, 1_001), DEFAULTS))["Progressing"] == (
        "True",
        "RoundAdvancing",
    )


def test_a_restart_of_the_operator_neither_ends_nor_repeats_a_stall() -> None:
    resource, observed = running(valid_game())
    stalled = build_plan(resource, later(heard(observed), 1_000), DEFAULTS)
    resource = with_status(resource, stalled.status)
    again = build_plan(resource, later(observed, 1_010), DEFAULTS)
    assert again.status == stalled.status
    assert again.events == ()


def test_peers_that_do_not_answer_are_said_to_be_unknown_and_never_to_stall() -> None:
    resource, observed = running(valid_game())
    silent = replace(observed, poll=PollFacts(silent_since=NOW, error="sums-peers-0: refused"))
    early = build_plan(resource, later(silent, 10), DEFAULTS)
    assert reported(early)["Progressing"][0] == "True"
    assert early.requeue_after is not None
    assert early.requeue_after <= 20
    for seconds in (30, 100_000):
        found = build_plan(resource, later(silent, seconds), DEFAULTS)
        assert reported(found)["Progressing"] == ("Unknown", "NoAnswer")
        message = next(each.message for each in found.status.conditions if each.type == "Progressing")
        assert "sums-peers-0: refused" in message
        assert "2026-01-31T12:00:00Z" in message
    answered = replace(heard(observed), poll=PollFacts(silent_since=NOW, error="busy"))
    assert reported(build_plan(resource, later(answered, 30), DEFAULTS))["Progressing"][0] == "True"


def test_peers_that_the_operator_never_asks_do_not_stall() -> None:
    resource, observed = running(valid_game())
    unasked = later(replace(observed, poll=PollFacts(enabled=False)), 100_000)
    found = build_plan(resource, unasked, DEFAULTS)
    assert reported(found)["Progressing"] == ("Unknown", "NotPolled")
    assert reported(found)["Ready"] == ("True", "PeersReady")


def test_removed_peers_are_scaling_down_until_they_are_gone() -> None:
    resource, observed = running(valid_game({"peers": {"replicas": 2}}))
    leaving = replace(observed, pods=(*observed.pods, peer_pod(2, phase="Running", terminating=True)))
    assert reported(build_plan(resource, leaving, DEFAULTS))["Progressing"] == ("True", "ScalingDown")
    assert reported(build_plan(resource, observed, DEFAULTS))["Progressing"] == ("True", "RoundAdvancing")


def test_a_peer_that_is_replaced_is_not_scaling_down() -> None:
    resource, observed = running(valid_game({"peers": {"replicas": 2}}))
    replaced = replace(
        observed, pods=(ready_pod(0), ready_pod(1), peer_pod(1, attempt=1, phase="Running", terminating=True))
    )
    assert reported(build_plan(resource, replaced, DEFAULTS))["Progressing"] == ("True", "RoundAdvancing")


def test_a_swarm_whose_peers_finish_is_ready_to_the_end() -> None:
    resource, observed = running(valid_game({"completion": {"policy": "AllPeers"}}))
    ended = tuple(replace(pod, phase="Succeeded", ready=False) for pod in observed.pods[:3])
    found = build_plan(resource, replace(observed, pods=(*ended, observed.pods[3])), DEFAULTS)
    assert reported(found)["Ready"] == ("True", "PeersReady")
    assert reported(found)["Progressing"] == ("True", "RoundAdvancing")
    assert found.events == ()


def test_finished_peers_are_not_missing() -> None:
    resource, observed = running(valid_game({"completion": {"policy": "AllPeers"}}))
    assert observed.job is not None
    done = replace(observed, pods=observed.pods[:2], job=replace(observed.job, completed_indexes="2,3"))
    assert reported(build_plan(resource, done, DEFAULTS))["Progressing"] == ("True", "RoundAdvancing")


def test_a_new_game_is_scaling_up_until_a_round_has_begun() -> None:
    assert reported(build_plan(*settled(valid_game()), DEFAULTS))["Progressing"] == ("True", "ScalingUp")
