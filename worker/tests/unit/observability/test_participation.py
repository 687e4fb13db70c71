"""Rounds that peers played, left out, and were too late in."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from swarmgame.game.protocol import ClosedBy
from swarmgame.game.report import RoundReport, SkipCause
from swarmgame.observability.diagnostics.files import RunWarning
from swarmgame.observability.diagnostics.rules import Diagnostic
from swarmgame.observability.metrics_file import MetricsFile
from swarmgame.observability.participation import Participation, participation
from swarmgame.observability.peer_progress import PeerProgress
from swarmgame.observability.run_directory import PeerDirectory


def peer(root: Path, index: int, rounds: dict[int, list[str]], skipped: list[dict[str, Any]] = []) -> PeerProgress:  # noqa: B006
    directory = PeerDirectory(root / str(index))
    directory.root.mkdir(parents=True)
    lines = [{"round": played, "peer": f"id-{index}", "missing": missing} for played, missing in rounds.items()]
    directory.metrics.write_text("".join(json.dumps(line) + "\n" for line in lines))
    if skipped:
        directory.skipped.write_text("".join(json.dumps(line) + "\n" for line in skipped))
    found = PeerProgress(index, directory)
    found.refresh()
    return found


def test_a_swarm_without_gaps_says_nothing(tmp_path: Path) -> None:
    found = participation([peer(tmp_path, index, {0: [], 1: []}) for index in range(2)])
    assert [(part.played, part.sentences) for part in found] == [(2, ()), (2, ())]


def test_skipped_rounds_are_told_with_their_causes_and_counts(tmp_path: Path) -> None:
    slow = [{"round": 3, "count": 2, "cause": "slow"}, {"round": 7, "count": 1, "cause": "slow"}]
    away = [{"round": 1, "count": 5, "cause": "away"}, {"round": 8, "count": 1, "cause": "slow"}]
    found = participation([peer(tmp_path, 0, {0: []}, slow), peer(tmp_path, 1, {0: []}, away)])
    assert [part.skipped for part in found] == [{"slow": 3}, {"away": 5, "slow": 1}]
    assert found[0].sentences == (
        "peer 0 skipped 3 rounds: because it was slower than the others, which went on without it",
    )
    assert found[1].sentences == (
        "peer 1 skipped 6 rounds: 5 rounds while it was stopped or restarted, 1 round because it was slower than the "
        "others, which went on without it",
    )


def test_rounds_that_others_closed_without_a_peer_are_counted_once_and_only_where_it_played(tmp_path: Path) -> None:
    missing = {0: ["id-2"], 1: ["id-2", "unknown"], 2: ["id-2"]}
    peers = [peer(tmp_path, 0, missing), peer(tmp_path, 1, missing), peer(tmp_path, 2, {0: [], 1: []})]
    found = participation(peers)
    assert [part.left_out for part in found] == [0, 0, 2]
    assert "peer 2 was too late in 2 rounds that it played" in found[2].sentences[0]


def test_lines_that_cannot_be_read_are_not_counted(tmp_path: Path) -> None:
    lines = [{"round": 3, "count": "2", "cause": "slow"}, {"round": 3}, {"count": 4, "cause": "away"}]
    (found,) = participation([peer(tmp_path, 0, {}, lines)])
    assert found == Participation(0, 0, {"away": 4}, 0)


def test_a_resume_removes_what_will_be_played_or_skipped_again(tmp_path: Path) -> None:
    metrics, skipped = tmp_path / "metrics.jsonl", tmp_path / "skipped.jsonl"
    first = MetricsFile(metrics, index=0, first_round=0, skipped=skipped)
    first.rounds_skipped(2, 3, SkipCause.SLOW)
    first.rounds_skipped(9, 4, SkipCause.AWAY)
    with skipped.open("a") as file:
        file.write('{"round": 20, "cou')
    MetricsFile(metrics, index=0, first_round=7, skipped=skipped)
    assert [json.loads(line) for line in skipped.read_text().splitlines()] == [
        {"round": 2, "count": 3, "cause": "slow"}
    ]


def test_what_a_warning_has_shown_is_counted_and_not_repeated(tmp_path: Path) -> None:
    both = [{"round": 3, "count": 2, "cause": "slow"}, {"round": 7, "count": 1, "cause": "away"}]
    peers = [peer(tmp_path, 0, {0: ["id-1"]}, both), peer(tmp_path, 1, {0: []}, both)]
    warnings = [RunWarning((1,), Diagnostic(code, "", 20, "")) for code in ("skipped-rounds", "missing-members")]
    first, second = participation(peers, warnings)
    assert first.sentences == (
        "peer 0 skipped 3 rounds: 1 round while it was stopped or restarted, 2 rounds because it was slower than the "
        "others, which went on without it",
    )
    assert second.sentences == ("peer 1 skipped 1 round: while it was stopped or restarted",)
    assert second.as_json() == {"index": 1, "played": 1, "skipped": {"away": 1, "slow": 2}, "left_out": 1}


def written(path: Path) -> list[tuple[int, bool, float]]:
    lines = map(json.loads, path.read_text().split("\n")[:-1])
    return [(line["round"], line.get("lost", False), line["reward"]) for line in lines]


def test_rounds_that_a_restarted_peer_does_not_play_again_stay_and_are_marked(tmp_path: Path) -> None:
    metrics, skipped = tmp_path / "metrics.jsonl", tmp_path / "skipped.jsonl"
    metrics.write_text("".join(f'{{"round": {number}, "reward": 0.1}}\n' for number in range(6)) + '{"round": 6, "re')
    # No checkpoint, and the swarm is at round 8.
    file = MetricsFile(metrics, index=0, first_round=0, skipped=skipped)
    assert written(metrics) == [(number, True, 0.1) for number in range(6)]
    file.rounds_skipped(0, 8, SkipCause.LATE)
    assert json.loads(skipped.read_text()) == {"round": 6, "count": 2, "cause": "late"}
    file.round_finished(report_of(8), None, {})  # type: ignore[arg-type]
    assert written(metrics) == [*((number, True, 0.1) for number in range(6)), (8, False, 0.5)]
    # A checkpoint after round 8; the next process loses nothing, and the marks stay.
    again = MetricsFile(metrics, index=0, first_round=9, skipped=skipped)
    again.round_finished(report_of(9), None, {})  # type: ignore[arg-type]
    assert written(metrics)[-3:] == [(5, True, 0.1), (8, False, 0.5), (9, False, 0.5)]


def test_rounds_that_are_played_again_replace_the_lost_ones(tmp_path: Path) -> None:
    metrics = tmp_path / "metrics.jsonl"
    metrics.write_text("".join(f'{{"round": {number}, "reward": 0.1}}\n' for number in range(6)))
    file = MetricsFile(metrics, index=0, first_round=3)
    assert written(metrics) == [(number, number >= 3, 0.1) for number in range(6)]
    for number in (3, 4):
        file.round_finished(report_of(number), None, {})  # type: ignore[arg-type]
    assert written(metrics) == [*((number, False, 0.1) for number in range(3)), (3, False, 0.5), (4, False, 0.5)]


def report_of(number: int) -> RoundReport:
    return RoundReport(
        round=number,
        peer="id-0",
        reward=0.5,
        stage_rewards=(),
        environments={},
        metrics={},
        external={},
        members=(),
        missing=(),
        closed_by=ClosedBy.QUORUM,
        tokens=0,
        policy_version=number,
    )
