"""`swarmgame report`: plots and the HTML report of a run, finished or not."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from swarmgame.cli.options import Runs
from swarmgame.errors import BadUsage


def report(
    run: Annotated[str, typer.Argument(metavar="RUN", help="Name of a run, or its folder.", show_default=False)],
    runs: Runs = Path("runs"),
) -> None:
    """Write report.html, plots/*.png and summary.json of a run.

    [bold]Examples[/bold]

      swarmgame report quickstart

      swarmgame report /data/runs/quickstart
    """
    from swarmgame.observability.run_directory import RunDirectory
    from swarmgame.observability.text import counted
    from swarmgame.report import write_report

    candidates = [folder for folder in (Path(run), runs / run) if (folder / "peers").is_dir()]
    if not candidates:
        known = sorted(path.name for path in runs.iterdir() if (path / "peers").is_dir()) if runs.is_dir() else []
        raise BadUsage(f"there is no run {run!r}; {runs} holds {', '.join(known) if known else 'none'}")
    directory = RunDirectory(candidates[0].absolute())
    summary = write_report(directory)
    typer.echo(f"{counted(summary.rounds, 'round')} of {counted(summary.peers, 'peer')}, {summary.tokens:,} tokens")
    for sentence in summary.sentences:
        typer.echo(sentence)
    typer.echo(directory.report)
