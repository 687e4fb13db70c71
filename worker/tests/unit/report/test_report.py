"""The report is complete and self-contained, and works for runs with few numbers."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from statistics import mean
from typing import TYPE_CHECKING, Any

import pytest
from markupsafe import Markup

from swarmgame.errors import BadData
from swarmgame.observability.run_directory import RunDirectory, RunProgress
from swarmgame.report import write_report, write_summary
from swarmgame.report.data import RunData, smoothed
from swarmgame.report.drawing import thinned
from swarmgame.report.html import render
from swarmgame.report.plots import draw_all
from swarmgame.report.results import held_out_of
from swarmgame.report.tables import option_rows, result_rows

if TYPE_CHECKING:
    from collections.abc import Callable

    from swarmgame.report.data import Summary

    MakeRun = Callable[..., RunDirectory]
    Reported = tuple[RunDirectory, Summary]

PNG = b"\x89PNG\r\n\x1a\n"
ALL_PLOTS = ["evaluation", "reward", "environments", "policy", "metrics", "seconds", "learning"]


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
        if tag not in {"meta", "img", "br"}:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and data.strip():
            self.text.setdefault(self.open[-1], []).append(data.strip())


def page_without_plots(run: RunData) -> str:
    return render(run, run.summary(), [], version="0", rollouts=Markup(""))


def test_a_summary_alone_is_that_of_the_report(make_run: MakeRun, reported: Reported) -> None:
    directory = make_run()
    alone = write_summary(directory)
    assert not directory.report.exists()
    assert not directory.plots.exists()
    with_report, summary = reported
    assert summary == alone
    assert with_report.summary.read_text() == directory.summary.read_text()


def test_the_report_of_a_run_is_complete(reported: Reported) -> None:
    directory, _ = reported
    page = Page(directory.report.read_text())
    assert page.open == []
    assert page.text["h1"] == ["quickstart"]
    assert page.text["h2"] == [
        "Results",
        "Held-out questions",
        "Training reward",
        "Training reward by environment",
        "The policy",
        "Other metrics of the trainer",
        "Where the time goes",
        "Who learned from whom",
        "Peers",
        "Metrics of the trainer",
        "Time by phase",
        "Messages and groups of other peers",
        "Scoring",
    ]
    assert {"peer 0", "peer 1", "peer 2", "peer 3", "accepted", "late", "breaches", "exceptions"} <= set(
        page.text["td"]
    )
    assert "1,440" in page.text["td"]  # accepted: 4 peers × 120 rounds × 3 others
    assert sorted(path.stem for path in directory.plots.iterdir()) == sorted(ALL_PLOTS)
    assert all(path.read_bytes().startswith(PNG) for path in directory.plots.iterdir())


def test_the_report_is_one_file_that_fetches_nothing(reported: Reported) -> None:
    directory, _ = reported
    text = directory.report.read_text()
    page = Page(text)
    sources = [
        attributes[name] or ""
        for _, attributes in page.tags
        for name in ("src", "href", "xlink:href", "srcset", "action")
        if name in attributes
    ]
    assert sources
    assert all(source.startswith(("data:image/png;base64,", "#")) for source in sources)
    assert len([tag for tag, _ in page.tags if tag == "svg"]) == 2 * len(ALL_PLOTS)
    assert not {tag for tag, _ in page.tags} & {"script", "link", "iframe", "object", "embed"}
    assert not re.search(r"https?://|url\((?!#)|@import", text)
    figures = [attributes for tag, attributes in page.tags if tag == "figure"]
    assert len(figures) == 2 * len(ALL_PLOTS)
    assert all(attributes.get("aria-label") for attributes in figures)


def test_the_pictures_follow_the_page_from_light_to_dark(make_run: MakeRun) -> None:
    directory = make_run(rounds=25, environments=20)
    write_report(directory)
    text = directory.report.read_text()
    assert "prefers-color-scheme: dark" in text
    light, dark = (
        set(re.findall(r"(--[a-z0-9]+):", block)) for block in re.findall(r":root \{(.*?)\}", text, re.DOTALL)
    )
    assert dark <= light
    drawn = "".join(re.findall(r"<svg.*?</svg>", text, re.DOTALL))
    assert set(re.findall(r"var\((--[a-z0-9]+)\)", drawn)) <= light
    assert set(re.findall(r"(?:fill|stroke): ?(#[0-9a-f]{6})", drawn)) <= {"#ffffff"}  # on heat maps, blue in both


def test_names_from_peers_and_environments_are_escaped_and_are_no_formulas(make_run: MakeRun) -> None:
    directory = make_run(rounds=3, environments=2)
    path = directory.peer(0).metrics
    hostile = "<script>alert(1)</script>$\\frac{$ &amp;"
    text = path.read_text().replace("environment_0", json.dumps(hostile)[1:-1])
    text = text.replace("16Uiu2HAmUnknown", "16Uiu2<img src=x>").replace('"loss"', '"<b>loss</b>"')
    path.write_text(text.replace('"late"', '"</td><script>"'))
    write_report(directory)
    page = Page(directory.report.read_text())
    assert not {tag for tag, _ in page.tags} & {"script", "img", "b"}
    assert hostile in page.text["td"]
    assert any(hostile[:10] in each for each in page.text["text"])


def test_what_a_manifest_holds_is_escaped(reported: Reported) -> None:
    directory, _ = reported
    text = directory.report.read_text()
    assert "<b>quickstart" not in text
    assert "&lt;b&gt;quickstart&lt;/b&gt;" in text


def test_the_summary_has_the_rise_of_the_reward(make_run: MakeRun) -> None:
    directory = make_run()
    summary = write_summary(directory)
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
    assert written["wall_seconds"] is None
    assert written["external"] == sum(sum(a["external"].values()) for p in run.peers for a in p.rounds.values())


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ({"peers": 1, "rounds": 1, "environments": 1}, ["evaluation", "reward", "policy", "metrics", "seconds"]),
        ({"peers": 2, "rounds": 2, "environments": 0}, ["policy", "metrics", "seconds", "learning"]),
        ({"peers": 3, "rounds": 30, "environments": 20}, ALL_PLOTS),
        ({"peers": 20, "rounds": 3, "environments": 2}, ALL_PLOTS),
        ({"peers": 3, "rounds": 700, "environments": 1}, [name for name in ALL_PLOTS if name != "environments"]),
        (
            {"peers": 3, "rounds": 12, "environments": 2, "stages": 3, "roles": True},
            ["evaluation", "reward", "parts", *ALL_PLOTS[2:]],
        ),
    ],
    ids=["one peer, one round", "nothing scored", "many environments", "many peers", "long", "stages and roles"],
)
def test_runs_of_every_shape_have_a_report(make_run: MakeRun, shape: dict[str, int], expected: list[str]) -> None:
    directory = make_run(**shape)
    write_report(directory)
    assert sorted(path.stem for path in directory.plots.iterdir()) == sorted(expected)
    assert directory.report.stat().st_size > 10_000


def test_a_run_with_almost_empty_lines_has_a_report(tmp_path: Path) -> None:
    directory = RunDirectory.of(tmp_path, "bare")
    directory.peer(0).root.mkdir(parents=True)
    directory.peer(0).metrics.write_text(
        '{"round": 0, "reward": null}\n{"round": 1, "external": null, "seconds": []}\n{"rou'
    )
    summary = write_report(directory)
    assert (summary.rounds, summary.first10, summary.rise, summary.tokens) == (2, None, None, 0)
    headings = Page(directory.report.read_text()).text["h2"]
    assert headings == ["No held-out evaluation", "Results", "Peers", "Messages and groups of other peers"]


def test_a_run_without_a_finished_round_has_no_report(tmp_path: Path) -> None:
    directory = RunDirectory.of(tmp_path, "empty")
    directory.peer(0).root.mkdir(parents=True)
    with pytest.raises(BadData, match="no finished round"):
        write_report(directory)
    assert not directory.report.exists()


def test_the_same_run_gives_the_same_pictures(reported: Reported) -> None:
    directory, _ = reported
    page, plots = directory.report.read_text(), draw_all(RunData(directory))
    assert [plot.name for plot in plots] == ALL_PLOTS
    for plot in plots:
        assert directory.plots.joinpath(f"{plot.name}.png").read_bytes() == plot.png
        assert plot.wide in page
        assert plot.narrow in page


def test_stages_and_roles_have_rows_of_their_own(make_run: MakeRun) -> None:
    run = RunData(make_run(rounds=40, environments=1, stages=3, roles=True))
    rows = {row.name: row for row in result_rows(run, run.summary().held_out)}
    assert list(rows) == ["all", "stage 0", "stage 1", "stage 2", "proposer", "solver"]
    last = [mean(peer.rounds[number]["stage_rewards"][2] for peer in run.peers) for number in range(30, 40)]
    assert rows["stage 2"].reward.last == pytest.approx(mean(last))
    assert rows["proposer"].reward.last == pytest.approx(
        mean(run.peers[0].rounds[number]["reward"] for number in range(30, 40))
    )
    assert rows["proposer"].held_out == held_out_of(run.peers[:1]).total  # type: ignore[union-attr]
    assert rows["stage 2"].held_out.last == pytest.approx(0.6 * rows["stage 0"].held_out.last)  # type: ignore[operator]
    page = Page(page_without_plots(run))
    assert {"by stage", "by role", "stage 2", "solver"} <= {text for each in page.text.values() for text in each}


def test_a_trainers_own_metrics_appear_by_name_and_constant_ones_in_the_table_only(reported: Reported) -> None:
    directory, _ = reported
    page = Page(directory.report.read_text())
    assert {"value_loss", "constant"} <= set(page.text["td"])
    assert "value_loss" in page.text["text"]
    assert "constant" not in page.text["text"]


def test_the_options_are_those_of_the_peer_with_every_default(make_run: MakeRun) -> None:
    directory = make_run(rounds=2)
    options = {
        "spec": {"game": {"trainer": {"use": "grpo", "with": {"temperature": 0.9, "lora": None, "betas": [0.9, 1]}}}}
    }
    directory.peer(1).options.write_text(json.dumps(options))
    run = RunData(directory)
    assert option_rows(run.options) == [
        ("game.trainer.use", "grpo"),
        ("game.trainer.with.temperature", "0.9"),
        ("game.trainer.with.lora", "null"),
        ("game.trainer.with.betas", "[0.9, 1]"),
    ]
    assert "at temperature 0.9" in run.summary().sentences[1]


def test_the_wall_clock_of_the_runner_is_in_the_report(make_run: MakeRun) -> None:
    directory = make_run(rounds=2)
    directory.record_progress(RunProgress(peers=4, max_rounds=2, finished=True, seconds=100.0))
    run = RunData(directory)
    assert run.summary().wall_seconds == 100.0
    assert "1 min 40 s with start and end" in page_without_plots(run)


def test_long_series_are_averaged_into_few_points() -> None:
    series = {number: float(number % 2) for number in range(3000)}
    assert len(thinned(series)) == 300
    assert set(thinned(series).values()) == {0.5}
    assert thinned({3: 1.0, 9: 2.0}) == {3: 1.0, 9: 2.0}


def test_smoothing_keeps_a_constant_and_the_rounds() -> None:
    series = {3: 1.0, 5: 1.0, 9: 1.0}
    assert smoothed(series, 3) == series
    assert smoothed({0: 0.0, 1: 3.0, 2: 0.0}, 3) == {0: 1.5, 1: 1.0, 2: 1.5}
