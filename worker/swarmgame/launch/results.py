"""The end of a run on the terminal: its summary and report are written, and its results and warnings are shown.

`swarmgame run` and `swarmgame join` both end here.
"""

from __future__ import annotations

import shlex

from swarmgame.errors import NotWritable, not_writable
from swarmgame.launch.display import Notify
from swarmgame.launch.peer_end import shown_path
from swarmgame.observability.run_directory import RunDirectory, RunProgress
from swarmgame_api.manifest import SwarmGame


def report_results(directory: RunDirectory, notify: Notify, *, page: bool) -> None:
    """Show the results, and write the summary, and with `page` plots and report. A disk that is full must not hide why
    the run ended.
    """
    from swarmgame.report import write_report, write_summary

    try:
        summary = write_report(directory) if page else write_summary(directory)
    except (OSError, NotWritable) as error:
        known = error if isinstance(error, NotWritable) else not_writable(error)
        if known is None:
            raise
        notify(f"no report: {known}")
        return
    for sentence in summary.sentences:
        notify(sentence)
    for part in summary.participation:
        for sentence in part.sentences:
            notify(f"warning: {sentence}")


def record_end(directory: RunDirectory, progress: RunProgress, notify: Notify) -> None:
    """Record how far a run came. A disk that is full must not hide why the run ended: without the record the run goes
    on from its checkpoints.
    """
    try:
        directory.record_progress(progress)
    except NotWritable as error:
        notify(f"the end of the run is not recorded: {error}")


def export_hint(manifest: SwarmGame, run: str) -> str:
    """Return how the policy of a finished run is had, as a sentence.

    Args:
        run: its name or folder, as an argument of a command.
    """
    what = "its policy, as files" if manifest.spec.model is None else "a model of it, for transformers"
    return f"{what}: {shlex.join(['swarmgame', 'export', run])} FOLDER"


def place_of(directory: RunDirectory) -> str:
    """Return where the report is, or the files of a run without one."""
    if directory.report.exists():
        return f"report: {shown_path(directory.report)}"
    return f"files: {shown_path(directory.root)}"
