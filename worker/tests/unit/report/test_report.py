"""The report is complete and self-contained, and works for runs with few numbers."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from swarmgame.errors import BadData
from swarmgame.observability.run_directory import RunDirectory
from swarmgame.report import write_report
from swarmgame.report.data import RunData, smoothed
from swarmgame.report.plots import draw_all

if TYPE_CHECKING:
    from collections.abc import Callable

    MakeRun = Callable[..., RunDirectory]

PNG = b"\x89PNG\r\n\x1a\n"
ALL_PLOTS = ["reward", "environments", "evaluation", "policy", "seconds", "learning"]


class Page(HTMLParser):
    """The tags of a page, its headings and the text of its cells."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text: dict[str, list[str]] = {}
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in {"meta", "img"}:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and data.strip():
            self.text.setdefault(self.open[-1], []).append(data.strip())


def test_the_report_of_a_run_is_complete(make_run: MakeRun) -> None:
    directory = make_run()
    write_report(directory)
    page = Page(directory.report.read_text())
    assert page.open == []
    assert page.text["h1"] == ["quickstart"]
    assert page.text["h2"] == [
        "Mean reward per round",
        "Reward by environment",
        "Held-out questions",
        "The policy",
        "Where the time goes",
        "Groups of other peers",
        "Peers",
        "Messages of other peers",
        "Scoring",
    ]
    assert {"peer 0", "peer 1", "peer 2", "peer 3", "accepted", "late", "breaches", "exceptions"} <= set(
        page.text["td"]
    )
    assert "1,440" in page.text["td"]  # accepted: 4 peers × 120 rounds × 3 others
    assert sorted(path.stem for path in directory.plots.iterdir()) == sorted(ALL_PLOTS)
    assert all(path.read_bytes().startswith(PNG) for path in directory.plots.iterdir())


def test_the_report_is_one_file_that_fetches_nothing(make_run: MakeRun) -> None:
    directory = make_run(rounds=25)
    write_report(directory)
    text = directory.report.read_text()
    page = Page(text)
    sources = [
        attributes[name] or ""
        for _, attributes in page.tags
        for name in ("src", "href", "srcset", "action")
        if name in attributes
    ]
    assert len(sources) == len(ALL_PLOTS)
    assert all(source.startswith("data:image/png;base64,") for source in sources)
    assert not {tag for tag, _ in page.tags} & {"script", "link", "iframe", "object", "embed"}
    assert not re.search(r"https?://|url\(|@import", text)
    assert all(attributes.get("alt") for tag, attributes in page.tags if tag == "img")


def test_what_a_manifest_holds_is_escaped(make_run: MakeRun) -> None:
    directory = make_run(rounds=3)
    write_report(directory)
    text = directory.report.read_text()
    assert "<b>quickstart</b>" not in text
    assert "&lt;b&gt;quickstart&lt;/b&gt;" in text


def test_the_summary_has_the_rise_of_the_reward(make_run: MakeRun) -> None:
    directory = make_run()
    summary = write_report(directory)
    written: dict[str, Any] = json.loads(directory.summary.read_text())
    assert written == summary.as_json()
    assert (written["rounds"], written["peers"], written["window"], written["tokens"]) == (120, 4, 10, 4 * 120 * 1024)
    run = RunData(directory)
    by_round = [sum(peer.rounds[number]["reward"] for peer in run.peers) / 4 for number in range(120)]
    assert written["first10"] == pytest.approx(sum(by_round[:10]) / 10)
    assert written["last10"] == pytest.approx(sum(by_round[-10:]) / 10)
    assert written["rise"] == pytest.approx(written["last10"] - written["first10"])
    assert written["seconds"] == pytest.approx(
        max(sum(a["seconds"]["round"] for a in p.rounds.values()) for p in run.peers)
    )
    assert written["external"] == sum(sum(a["external"].values()) for p in run.peers for a in p.rounds.values())


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ({"peers": 1, "rounds": 1, "environments": 1}, ["reward", "environments", "evaluation", "policy", "seconds"]),
        ({"peers": 2, "rounds": 2, "environments": 0}, ["evaluation", "policy", "seconds", "learning"]),
        ({"peers": 3, "rounds": 30, "environments": 20}, ALL_PLOTS),
        ({"peers": 20, "rounds": 3, "environments": 2}, ALL_PLOTS),
    ],
    ids=["one peer, one round", "nothing scored", "many environments", "many peers"],
)
def test_runs_of_every_shape_have_a_report(make_run: MakeRun, shape: dict[str, int], expected: list[str]) -> None:
    directory = make_run(**shape)
    assert [plot.name for plot in draw_all(RunData(directory))] == expected
    write_report(directory)
    assert directory.report.stat().st_size > 10_000


def test_a_run_with_almost_empty_lines_has_a_report(tmp_path: Path) -> None:
    directory = RunDirectory.of(tmp_path, "bare")
    directory.peer(0).root.mkdir(parents=True)
    directory.peer(0).metrics.write_text(
        '{"round": 0, "reward": null}\n{"round": 1, "external": null, "seconds": []}\n{"rou'
    )
    summary = write_report(directory)
    assert (summary.rounds, summary.first10, summary.rise, summary.tokens) == (2, None, None, 0)
    assert Page(directory.report.read_text()).text["h2"] == ["Peers", "Messages of other peers"]


def test_a_run_without_a_finished_round_has_no_report(tmp_path: Path) -> None:
    directory = RunDirectory.of(tmp_path, "empty")
    directory.peer(0).root.mkdir(parents=True)
    with pytest.raises(BadData, match="no finished round"):
        write_report(directory)
    assert not directory.report.exists()


def test_the_same_run_gives_the_same_pictures(make_run: MakeRun) -> None:
    run = RunData(make_run(rounds=20))
    assert [plot.png for plot in draw_all(run)] == [plot.png for plot in draw_all(run)]


def test_smoothing_keeps_a_constant_and_the_rounds() -> None:
    series = {3: 1.0, 5: 1.0, 9: 1.0}
    assert smoothed(series, 3) == series
    assert smoothed({0: 0.0, 1: 3.0, 2: 0.0}, 3) == {0: 1.5, 1: 1.0, 2: 1.5}
