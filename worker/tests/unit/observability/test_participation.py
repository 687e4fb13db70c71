"""Rounds that peers played, left out, and were too late in."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from swarmgame.game.report import SkipCause
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
