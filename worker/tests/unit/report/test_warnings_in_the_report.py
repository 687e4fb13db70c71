"""The report has the warnings of a run, each once with its peers, count, cause and cure."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from markupsafe import Markup

from swarmgame.observability.diagnostics.files import append
from swarmgame.observability.diagnostics.rules import Diagnostic
from swarmgame.observability.run_directory import RunDirectory
from swarmgame.report.data import RunData
from swarmgame.report.html import render

if TYPE_CHECKING:
    from collections.abc import Callable

    from swarmgame.report.data import Summary

    MakeRun = Callable[..., RunDirectory]


def page_of(directory: RunDirectory) -> str:
    """Return the report's page without its plots."""
    run = RunData(directory)
    page = render(run, run.summary(), [], version="0", rollouts=Markup(""))
    assert "Warnings" in page
    return page


def test_a_warning_of_several_peers_stands_once_with_cause_and_cure(make_run: MakeRun) -> None:
    run = make_run(peers=3, rounds=5)
    for index, count in ((0, 4), (2, 2)):
        found = Diagnostic("no-spread", "", 2, "nothing can be learned", "Rewards are constant", "Sample more")
        append(run.peer(index).warnings, index, found)
        append(run.peer(index).warnings, index, replace(found, count=count))
    text = " ".join(page_of(run).split())
    assert text.count("nothing can be learned") == 1
    assert "peers 0, 2, from round 2, 6 times. Likely cause: Rewards are constant. Sample more." in text


def test_a_traceback_is_shown_as_text_and_not_as_markup(make_run: MakeRun) -> None:
    run = make_run(peers=1, rounds=5)
    found = Diagnostic("scoring-failed", "x", 0, "a call failed: <b>", cure="Correct it", detail="  File <script>")
    append(run.peer(0).warnings, 0, found)
    text = page_of(run)
    assert "a call failed: &lt;b&gt;" in text
    assert "  File &lt;script&gt;" in text


def test_a_run_without_warnings_has_no_such_section(reported: tuple[RunDirectory, Summary]) -> None:
    assert "Warnings" not in reported[0].report.read_text()
