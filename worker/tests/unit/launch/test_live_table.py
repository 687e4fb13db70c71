"""The display of a run, from files that are being written."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from swarmgame.launch.live_table import JsonLines, LiveTable, make_table, make_view, round_line, sparkline
from swarmgame.observability.peer_progress import PeerProgress, Tail, mean_rewards
from swarmgame.observability.run_directory import PeerDirectory


def line(number: int, reward: float | None = 0.5, **more: object) -> str:
    return (
        json.dumps(
            {"round": number, "reward": reward, "tokens": 100, "seconds": {"generate": 0.5, "exchange": 0.02}, **more}
        )
        + "\n"
    )


def peer(root: Path, index: int, text: str, state: str = "running") -> PeerProgress:
    directory = PeerDirectory(root / str(index))
    directory.root.mkdir(parents=True, exist_ok=True)
    directory.metrics.write_text(text)
    progress = PeerProgress(index, directory, state=state)
    progress.refresh()
    return progress


def drawn(peers: list[PeerProgress], seconds_left: float | None = None, *, width: int = 160) -> str:
    console = Console(file=io.StringIO(), width=width)
    console.print(make_table("quick", peers, 30, seconds_left, console=console))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_half_a_line_is_read_when_it_is_complete(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    tail = Tail(path)
    assert tail.read() == []
    complete = line(0) + line(1)
    for cut in range(len(complete)):
        path.write_text(complete[:cut])
        Tail(path).read()
    path.write_text(complete[:-5])
    assert [found["round"] for found in tail.read()] == [0]
    with path.open("a") as file:
        file.write(complete[-5:])
    assert [found["round"] for found in tail.read()] == [1]
    assert tail.read() == []


def test_a_long_run_keeps_the_last_rounds_and_every_reward(tmp_path: Path) -> None:
    everything, short = PeerDirectory(tmp_path / "0"), PeerDirectory(tmp_path / "0")
    everything.root.mkdir()
    everything.metrics.write_text("".join(line(number, None if number == 3 else number / 100) for number in range(50)))
    complete, kept = PeerProgress(0, everything), PeerProgress(0, short, keep=10)
    for progress in (complete, kept):
        progress.refresh()
    assert list(kept.rounds) == list(range(40, 50))
    assert (kept.finished, kept.rewards, kept.last) == (complete.finished, complete.rewards, complete.last)
    assert mean_rewards([kept]) == mean_rewards([complete])
    # A checkpoint further back than what is kept: rounds from 20 on are played again.
    with everything.metrics.open("a") as file:
        file.write("".join(line(number, 0.9) for number in range(20, 35)))
    for progress in (complete, kept):
        progress.refresh()
    assert (kept.finished, kept.rewards, kept.last) == (complete.finished, complete.rewards, complete.last)
    assert list(kept.rounds) == list(range(25, 35))


def test_lines_that_are_not_json_objects_are_skipped_and_counted(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(line(0).encode() + b"\xff\xfe\n[1]\n\n{torn\n" + line(1).encode())
    tail = Tail(path)
    assert [found["round"] for found in tail.read()] == [0, 1]
    assert tail.skipped == 3


def test_rounds_that_are_played_again_after_a_crash_replace_the_first_line(tmp_path: Path) -> None:
    progress = peer(tmp_path, 0, line(0) + line(1, 0.1) + line(2, 0.2))
    with progress.directory.metrics.open("a") as file:
        file.write(line(1, 0.9))
    assert progress.refresh()
    assert progress.rewards == [0.5, 0.9]


def test_a_file_that_was_cut_at_a_resume_is_read_again(tmp_path: Path) -> None:
    progress = peer(tmp_path, 0, "".join(line(number) for number in range(5)))
    replacement = tmp_path / "replacement"
    replacement.write_text(line(0) + line(1))
    replacement.replace(progress.directory.metrics)
    progress.refresh()
    assert list(progress.rounds) == [0, 1]


def test_the_mean_reward_is_over_the_peers_that_scored(tmp_path: Path) -> None:
    peers = [
        peer(tmp_path, 0, line(0, 0.2) + line(1, None)),
        peer(tmp_path, 1, line(0, 0.4) + line(1, None) + line(2, 1.0)),
    ]
    assert mean_rewards(peers) == {0: pytest.approx(0.3), 2: 1.0}


def test_the_table_has_a_row_for_each_peer_and_the_rise_of_all(tmp_path: Path) -> None:
    text = "".join(
        line(number, number / 30, metrics={"entropy": 1.25}, members=["a", "b"], external={"b": 3})
        for number in range(30)
    )
    shown = drawn([peer(tmp_path, 0, text), peer(tmp_path, 1, text, state="restarting")], 75)
    assert "0.150 → 0.817" in shown
    assert "1 min 15 s left" in shown
    assert "restarting" in shown
    assert "30/30" in shown
    row = next(each for each in shown.splitlines() if each.startswith("    0 "))
    assert row.split()[4:] == ["0.967", "▁▁▂▂▃▃▄▄▅▅▆▆▇▇██", "1.25", "200", "2", "20", "ms", "0", "3"]


@pytest.mark.parametrize("width", [40, 60, 80, 100, 120, 160])
def test_a_narrow_terminal_gets_fewer_columns_and_no_heading_is_cut(tmp_path: Path, width: int) -> None:
    evaluation = {"average": {"all": 0.625}}
    text = "".join(
        line(number, number / 30, metrics={"entropy": 1.25}, members=["a", "b"], evaluation=evaluation)
        for number in range(30)
    )
    shown = drawn([peer(tmp_path, 0, text), peer(tmp_path, 1, text, state="restarting")], 750, width=width)
    assert "…" not in shown
    assert max(map(len, shown.splitlines())) <= width
    headings = shown.splitlines()[1].split()
    assert headings[:3] == ["peer", "state", "round"]
    assert len(headings) == {40: 3, 60: 5, 80: 5, 100: 7, 120: 9, 160: 12}[width]
    assert ("█" in shown) == (width >= 80)
    assert ("held-out" in headings) == (width >= 60)
    assert shown.count("quick") == 1


def test_the_newest_evaluation_stays_in_the_table_and_the_first_one_counts_before_it(tmp_path: Path) -> None:
    first = line(0, first_evaluation={"average": {"all": 0.125}})
    assert "0.125" in drawn([peer(tmp_path, 0, first + line(1))])
    later = line(2, evaluation={"average": {"all": 0.375}})
    assert "0.375" in drawn([peer(tmp_path, 1, first + line(1) + later + line(3))])


def test_a_game_without_evaluations_has_no_column_for_them(tmp_path: Path) -> None:
    assert "held-out" not in drawn([peer(tmp_path, 0, line(0))])


def test_an_isolated_peer_is_marked(tmp_path: Path) -> None:
    assert "alone" in drawn([peer(tmp_path, 0, line(0, closed_by="alone"))])


def test_the_status_fills_what_the_metrics_cannot_know_yet(tmp_path: Path) -> None:
    progress = peer(tmp_path, 0, "")
    progress.status = {"phase": "joining", "round": -1, "members": []}
    assert "joining" in drawn([progress])
    progress.status = {"phase": "running", "round": 4, "stage": 1, "members": ["a", "b", "c"]}
    row = next(each for each in drawn([progress]).splitlines() if "running" in each)
    assert row.split()[2:4] == ["5", "1"]


def test_a_table_without_any_round_is_drawn(tmp_path: Path) -> None:
    assert "starting" in drawn([peer(tmp_path, 0, "", state="")])


def test_the_time_left_is_estimated_from_the_first_new_round(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr("swarmgame.launch.live_table.time.monotonic", lambda: now[0])
    console = Console(file=io.StringIO(), width=160, force_terminal=True)
    shown = LiveTable("quick", 10, console)
    left = []
    for seconds, rounds in [(0, 2), (60, 2), (61, 3), (63, 4), (65, 5)]:
        now[0] = 100.0 + seconds
        left.append(shown._seconds_left([peer(tmp_path, 0, "".join(line(number) for number in range(rounds)))]))
    shown.close([])
    assert left == [None, None, None, 12.0, 10.0]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([], ""),
        ([None], ""),
        ([1.0], "▁"),
        ([0.0, 1.0], "▁█"),
        ([0.0, None, 1.0], "▁ █"),
        ([0.0, 0.5, 1.0], "▁▄█"),
        ([2.0, 2.0], "▁▁"),
    ],
)
def test_a_sparkline_goes_from_the_lowest_to_the_highest(values: list[float | None], expected: str) -> None:
    assert sparkline(values) == expected


def test_a_long_sparkline_is_averaged_into_its_width() -> None:
    assert sparkline([float(number) for number in range(1000)], 8) == "▁▂▃▄▅▆▇█"


def test_a_pipe_gets_a_round_when_all_live_peers_have_played_it(tmp_path: Path) -> None:
    output = io.StringIO()
    lines = JsonLines(output)
    fast, slow = peer(tmp_path, 0, line(0, 0.0) + line(1, 0.0)), peer(tmp_path, 1, line(0, 1.0))
    lines.show([fast, slow])
    assert [json.loads(each) for each in output.getvalue().splitlines()] == [
        round_line(0, [fast.rounds[0], slow.rounds[0]])
    ]
    slow.state = "failed"
    lines.show([fast, slow])
    assert [json.loads(each)["peers"] for each in output.getvalue().splitlines()] == [2, 1]


def test_a_pipe_does_not_wait_for_a_peer_that_lags_far(tmp_path: Path) -> None:
    output = io.StringIO()
    JsonLines(output).show([peer(tmp_path, 0, "".join(line(number) for number in range(5))), peer(tmp_path, 1, "")])
    assert [json.loads(each)["round"] for each in output.getvalue().splitlines()] == [0, 1, 2]


def test_the_last_rounds_are_written_when_the_view_is_closed(tmp_path: Path) -> None:
    output = io.StringIO()
    lines = JsonLines(output)
    peers = [peer(tmp_path, 0, line(0) + line(1)), peer(tmp_path, 1, line(0))]
    lines.show(peers)
    lines.close(peers)
    lines.close(peers)
    assert [json.loads(each)["round"] for each in output.getvalue().splitlines()] == [0, 1]


def test_a_round_line_is_of_means_and_sums() -> None:
    one = {
        "reward": 0.2,
        "tokens": 10,
        "seconds": {"generate": 0.1, "exchange": 0.01},
        "missing": ["c"],
        "external": {"b": 2},
    }
    two = {
        "reward": 0.4,
        "tokens": 20,
        "seconds": {"generate": 0.1, "exchange": 0.03},
        "missing": [],
        "external": {"a": 3},
    }
    found = round_line(7, [one, two])
    assert {
        name: found[name]
        for name in ("round", "peers", "reward", "tokens", "tokens_per_second", "exchange_ms", "missing", "external")
    } == {
        "round": 7,
        "peers": 2,
        "reward": 0.3,
        "tokens": 30,
        "tokens_per_second": 150.0,
        "exchange_ms": 20.0,
        "missing": 1,
        "external": 5,
    }
    assert "evaluation" not in found
    assert round_line(0, [{**one, "evaluation": {"average": {"all": 0.5}}}])["evaluation"] == 0.5


def test_a_terminal_gets_the_table_and_a_pipe_the_lines() -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    shown = make_view("quick", 5, output=Terminal())
    assert isinstance(shown, LiveTable)
    shown.close([])
    assert isinstance(make_view("quick", 5, output=io.StringIO()), JsonLines)


def test_a_message_that_looks_like_markup_is_printed_as_it_is() -> None:
    console = Console(file=io.StringIO(), width=160)
    view = LiveTable("quick", 5, console)
    view.print("warning: KeyError: '[/red]' at [bold]game.py:3")
    view.close([])
    assert isinstance(console.file, io.StringIO)
    assert "warning: KeyError: '[/red]' at [bold]game.py:3" in console.file.getvalue()
