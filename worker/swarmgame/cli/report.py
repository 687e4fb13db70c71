"""`swarmgame report`: plots and the HTML report of a run, finished or not."""

from __future__ import annotations

from pathlib import Path

import typer

from swarmgame.cli.options import Run, Runs, find_run


def report(
    run: Run,
    runs: Runs = Path("runs"),
) -> None:
    """Write report.html, plots/*.png and summary.json of a run.

    [bold]Examples[/bold]

      swarmgame report quickstart

      swarmgame report /data/runs/quickstart
    """
    from swarmgame.observability.text import counted
    from swarmgame.report import write_report

    directory = find_run(run, runs)
    summary = write_report(directory)
    typer.echo(f"{counted(summary.rounds, 'round')} of {counted(summary.peers, 'peer')}, {summary.tokens:,} tokens")
    for sentence in summary.sentences:
        typer.echo(sentence)
    typer.echo(directory.report)
