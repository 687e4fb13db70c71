"""The report of a run: `report.html`, `plots/*.png` and `summary.json`, made from the files of its peers.

It can be made at any time, also while the run goes on. Each file is replaced atomically.
"""

from __future__ import annotations

import json

from swarmgame import __version__
from swarmgame.errors import writing
from swarmgame.observability.run_directory import RunDirectory, write_atomically
from swarmgame.report.data import RunData, Summary

__all__ = ["Summary", "write_report", "write_summary"]


def write_summary(directory: RunDirectory) -> Summary:
    """Write the summary alone, without plots and page.

    Raises:
        BadData: no peer has finished a round yet.
        NotWritable: the disk is full, or the folder is read-only.
    """
    return _write_summary(directory, RunData(directory))


def write_report(directory: RunDirectory) -> Summary:
    """Draw the plots, and write the page and the summary.

    Raises:
        BadData: no peer has finished a round yet.
        NotWritable: the disk is full, or the folder is read-only.
    """
    from swarmgame.report.html import render  # with matplotlib, which a summary does not need
    from swarmgame.report.plots import draw_all
    from swarmgame.report.rollouts import rollouts_section

    run = RunData(directory)
    summary = _write_summary(directory, run)
    plots = draw_all(run)
    with writing(directory.plots):
        directory.plots.mkdir(exist_ok=True)
        for plot in plots:
            (directory.plots / f"{plot.name}.png").write_bytes(plot.png)
    page = render(run, summary, plots, version=__version__, rollouts=rollouts_section(directory))
    write_atomically(directory.report, page)
    return summary


def _write_summary(directory: RunDirectory, run: RunData) -> Summary:
    summary = run.summary()
    write_atomically(directory.summary, json.dumps(summary.as_json(), indent=2) + "\n")
    return summary
