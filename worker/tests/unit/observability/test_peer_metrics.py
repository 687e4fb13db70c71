"""Status and metrics from the observers of a game."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from swarmgame.game.evaluation import Evaluation
from swarmgame.game.protocol import ClockError, ClosedBy, Collected
from swarmgame.game.report import RoundReport, SkipCause
from swarmgame.game.state import GameState, Round
from swarmgame.observability.metric_definitions import METRICS, PREFIX, reference
from swarmgame.observability.metrics import MAX_LABEL_VALUES, MetricsObserver, PeerMetrics, clip_ratio_of
from swarmgame.observability.status import PeerStatus, Phase, StatusObserver

ROUND = Round(number=4, seed=1, peer_seed=2, stages=2, peer="a", members=("a", "b"))


def report(**changes: object) -> RoundReport:
    fields: dict[str, object] = {
        "round": 4,
        "peer": "a",
        "reward": 0.25,
        "stage_rewards": (0.25,),
        "environments": {"gcd": 0.25},
        "metrics": {"entropy": 1.5, "kl": 0.1, "clip_low": 0.01, "clip_high": 0.02, "loss": -0.5},
        "external": {"b": 3, "c": 1},
        "members": ("a", "b"),
        "missing": (),
        "closed_by": ClosedBy.QUORUM,
        "tokens": 100,
        "policy_version": 5,
        "seconds": {"generate": 0.5, "checkpoint": 0.125, "round": 1.0},
        "outcomes": {"accepted": 2, "late": 1},
        "counters": {"breaches": 2, "exceptions": 1},
        "evaluation": Evaluation(
            average={"all": 0.5},
            passed={"all": 0.75},
            samples=4,
            errors={"all": 0.125},
            stages=(0.375, 0.5),
            sampled=Evaluation({"all": 0.25}, {"all": 0.5}, 2, pass_at={"1": 0.25, "2": 0.5}),
        ),
        "rollouts": 8,
        "truncated_share": 0.125,
        "zero_advantage_share": 0.625,
        "bytes_sent": 10,
        "bytes_received": 20,
    }
    return RoundReport(**{**fields, **changes})  # type: ignore[arg-type]


def samples(metrics: PeerMetrics) -> dict[str, float]:
    found = {}
    for family in text_string_to_metric_families(metrics.render().decode()):
        for sample in family.samples:
            labels = "".join(f"{{{key}={value}}}" for key, value in sorted(sample.labels.items()))
            found[sample.name.removeprefix(PREFIX) + labels] = sample.value
    return found


def played(*reports: RoundReport) -> dict[str, float]:
    metrics = PeerMetrics(peer="a")
    observer = MetricsObserver(metrics, clock=lambda: 1000.0)
    observer.round_started(ROUND)
    standings = {"b": "anchor", "c": "missed", "d": "missed"}
    collected = Collected(
        (),
        ("a", "b", "c"),
        ("c",),
        ClosedBy.DEADLINE,
        seconds=0.3,
        standings=standings,
        clock_error=ClockError(-20.0, 3),
    )
    observer.stage_closed(ROUND, 0, collected)
    for each in reports:
        observer.round_finished(each, GameState.begin(ROUND), {})
    return samples(metrics)


def test_every_field_of_a_round_reaches_its_metric() -> None:
    found = played(report())
    expected = {
        "round": 4,
        "reward": 0.25,
        "environment_reward{environment=gcd}": 0.25,
        "entropy": 1.5,
        "kl": 0.1,
        "trainer{name=loss}": -0.5,
        "tokens_total": 100,
        "policy_version": 5,
        "external_groups_total": 4,
        "stage_seconds{part=generate}": 0.5,
        "stage_seconds{part=checkpoint}": 0.125,
        "round_seconds_sum": 1.0,
        "exchange_seconds_sum": 0.3,
        "exchange_bytes_total{direction=sent}": 10,
        "exchange_bytes_total{direction=received}": 20,
        "contributions_total{outcome=accepted}": 2,
        "contributions_total{outcome=late}": 1,
        "scoring_breaches_total": 2,
        "scoring_total{event=exceptions}": 1,
        "evaluation_average{environment=all}": 0.5,
        "evaluation_passed{environment=all}": 0.75,
        "evaluation_error{environment=all}": 0.125,
        "evaluation_stage{stage=0}": 0.375,
        "evaluation_stage{stage=1}": 0.5,
        "evaluation_pass_at{k=1}": 0.25,
        "evaluation_pass_at{k=2}": 0.5,
        "stage_reward{stage=0}": 0.25,
        "completion_length": 12.5,
        "truncated_share": 0.125,
        "zero_advantage_share": 0.625,
        "peers_connected": 3,
        "missing_total": 1,
        "members_by_standing{standing=anchor}": 1,
        "members_by_standing{standing=missed}": 2,
        "members_by_standing{standing=counted}": 0,
        "clock_error_seconds": -20.0,
        "alone": 0,
        "stages_closed_total{by=deadline}": 1,
        "last_round_timestamp_seconds": 1000.0,
    }
    assert {name: found[name] for name in expected} == expected
    assert found["clip_ratio"] == pytest.approx(0.03)


def test_the_evaluation_before_the_first_update_counts_until_there_is_a_later_one() -> None:
    before = Evaluation(average={"all": 0.125}, passed={"all": 0.25}, samples=1)
    assert played(report(first_evaluation=before, evaluation=None))["evaluation_average{environment=all}"] == 0.125
    assert played(report(first_evaluation=before))["evaluation_average{environment=all}"] == 0.5


def test_running_totals_of_the_rewards_are_counted_once() -> None:
    found = played(
        report(counters={"breaches": 2}),
        report(round=5, counters={"breaches": 2}),
        report(round=6, counters={"breaches": 5}),
    )
    assert found["scoring_breaches_total"] == 5


def test_a_running_total_that_starts_again_is_added() -> None:
    assert (
        played(report(counters={"breaches": 4}), report(round=5, counters={"breaches": 1}))["scoring_breaches_total"]
        == 5
    )


def test_a_round_without_scores_is_not_a_number_and_no_error() -> None:
    assert math.isnan(played(report(reward=math.nan))["reward"])


def test_the_number_of_label_values_is_bounded() -> None:
    found = played(report(metrics={f"metric-{i}": float(i) for i in range(1000)}))
    names = [name for name in found if name.startswith("trainer{")]
    assert len(names) == MAX_LABEL_VALUES + 1
    assert "trainer{name=other}" in names


@pytest.mark.parametrize(
    ("reported", "expected"),
    [
        ({}, None),
        ({"clip_ratio": 0.2}, 0.2),
        ({"clip_high": 0.2}, 0.2),
        ({"clip_ratio": math.nan, "clip_low": 0.1}, 0.1),
    ],
)
def test_the_clip_ratio_is_the_reported_one_or_the_sum_of_its_sides(
    reported: dict[str, float], expected: float | None
) -> None:
    assert clip_ratio_of(reported) == expected


def test_the_reference_page_lists_every_metric_with_its_meaning() -> None:
    page = Path(__file__).parents[4] / "docs/reference/metrics.md"
    assert page.read_text(encoding="utf-8") == reference()
    chain = PeerMetrics(peer="a")
    chain.chain(waiting=1, final=2, rejected=0, dropped=0)
    chain["warnings_total"].labels("no-spread").inc()
    chain["rounds_skipped_total"].labels(str(SkipCause.SLOW)).inc(3)
    exposed = {sample.split("{")[0] for sample in played(report()) | samples(chain)}
    for metric in METRICS:
        assert metric.description
        assert metric.high
        assert metric.low
        assert any(name.startswith(metric.name) for name in exposed), metric.name


def test_two_peers_in_one_process_do_not_mix_their_metrics() -> None:
    one, two = PeerMetrics(peer="a"), PeerMetrics(peer="b")
    one["round"].set(3)
    assert samples(two)["round"] == 0


def test_the_status_follows_the_loop() -> None:
    status = PeerStatus(index=1, max_rounds=10)
    observer = StatusObserver(status)
    assert status.current.phase is Phase.STARTING
    observer.game_started(first_round=4, max_rounds=10)
    observer.round_started(ROUND)
    assert (status.current.phase, status.current.round, status.current.rounds_finished) == (Phase.RUNNING, 4, 4)
    observer.stage_closed(ROUND, 1, Collected((), ("a",), (), ClosedBy.ISOLATED))
    assert (status.current.stage, status.current.alone, status.current.members) == (1, True, ("a",))
    observer.round_finished(report(), GameState.begin(ROUND), {})
    assert (status.current.reward, status.current.rounds_finished) == (0.25, 5)
    observer.game_finished(10)
    assert status.current.phase is Phase.FINISHED


def test_the_status_shows_the_members_that_count_first_and_not_every_invented_one() -> None:
    status = PeerStatus()
    standings = {f"invented-{number:05}": "probation" for number in range(1000)} | {"zoe": "anchor", "eve": "counted"}
    StatusObserver(status).stage_closed(ROUND, 0, Collected((), ("a",), (), ClosedBy.QUORUM, standings=standings))
    shown = status.snapshot()["standings"]
    assert list(shown)[:3] == ["eve", "zoe", "invented-00000"]
    assert len(shown) == 256


def test_a_game_that_was_stopped_is_not_called_finished() -> None:
    status = PeerStatus(max_rounds=10)
    StatusObserver(status).game_finished(5)
    assert status.current.phase is Phase.STOPPING


def test_a_reward_that_is_not_a_number_is_null_in_the_status() -> None:
    status = PeerStatus()
    StatusObserver(status).round_finished(report(reward=math.nan), GameState.begin(ROUND), {})
    assert status.snapshot()["reward"] is None


def test_an_unknown_field_of_the_status_is_an_error() -> None:
    with pytest.raises(TypeError):
        PeerStatus().change(rounds=3)


def test_a_peer_shows_four_numbers_of_its_chain_and_none_without_a_chain() -> None:
    assert not [name for name in played(report()) if name.startswith("chain")]
    metrics = PeerMetrics(peer="a")
    metrics.chain(waiting=3, final=2, rejected=1, dropped=0)
    shown = {name: value for name, value in samples(metrics).items() if name.startswith("chain")}
    assert shown == {
        f"chain_messages{{state={state}}}": count
        for state, count in (("waiting", 3), ("final", 2), ("rejected", 1), ("dropped", 0))
    }


def test_the_counts_of_a_generation_server_are_added_up_over_rounds() -> None:
    first = report(
        metrics={
            "engine_requests": 8.0,
            "engine_retries": 1.0,
            "engine_seconds": 0.5,
            "engine_pushes": 2.0,
            "loss": 0.1,
        }
    )
    second = report(
        metrics={
            "engine_requests": 8.0,
            "engine_retries": 0.0,
            "engine_seconds": 0.25,
            "engine_pushes": 1.0,
            "engine_mine": 3.0,
        }
    )
    found = played(first, second)
    assert found["engine_requests_total"] == 16
    assert found["engine_retries_total"] == 1
    assert found["engine_seconds_total"] == 0.75
    assert found["engine_pushes_total"] == 3
    assert found["trainer{name=engine_mine}"] == 3
    assert not [name for name in found if "trainer{name=engine_requests" in name]
