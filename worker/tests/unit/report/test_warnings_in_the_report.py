"""The report has the warnings of a run, each once with its peers, count, cause and cure."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from swarmgame.observability.diagnostics.files import append
from swarmgame.observability.diagnostics.rules import Diagnostic
from swarmgame.observability.run_directory import RunDirectory
from swarmgame.report import write_report

if TYPE_CHECKING:
    from collections.abc import Callable

    MakeRun = Callable[..., RunDirectory]


def test_a_warning_of_several_peers_stands_once_with_cause_and_cure(make_run: MakeRun) -> None:
    run = make_run(peers=3, rounds=5)
    for index, count in ((0, 4), (2, 2)):
        found = Diagnostic("no-spread", "", 2, "nothing can be learned", "Rewards are constant", "Sample more")
        append(run.peer(index).warnings, index, found)
        append(run.peer(index).warnings, index, replace(found, count=count))
    write_report(run)
    text = " ".join(run.report.read_text().split())
    assert text.count("nothing can be learned") == 1
    assert "peers 0, 2, from round 2, 6 times. Likely cause: Rewards are constant. Sample more." in text


def test_a_traceback_is_shown_as_text_and_not_as_markup(make_run: MakeRun) -> None:
    run = make_run(peers=1, rounds=5)
    found = Diagnostic("scoring-failed", "x", 0, "a call failed: <b>", cure="Correct it", detail="  File <script>")
    append(run.peer(0).warnings, 0, found)
    write_report(run)
    text = run.report.read_text()
    assert "a call failed: &lt;b&gt;" in text
    assert "  File &lt;script&gt;" in text


def test_a_run_without_warnings_has_no_such_section(make_run: MakeRun) -> None:
    run = make_run(peers=1, rounds=5)
    write_report(run)
    assert "Warnings" not in run.report.read_text()
