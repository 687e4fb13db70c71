"""Join: one peer in this process, for a swarm that plays elsewhere, with the display of a local run.

The peer is `swarmgame.runtime.peer`; here are its folder, its display and its report. Invariant: a folder belongs to
one game and one process at a time, as a run's does.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

from swarmgame.errors import ExitCode
from swarmgame.launch.display import RunDisplay
from swarmgame.launch.local import Notify
from swarmgame.observability.run_directory import RunDirectory, RunProgress
from swarmgame.runtime.assembly import check, prepare
from swarmgame.runtime.options import PeerOptions
from swarmgame.runtime.peer import run_peer
from swarmgame_api.load import manifest_data
from swarmgame_api.manifest import SwarmGame


@dataclass(frozen=True)
class JoinOptions:
    """The options of `swarmgame join`.

    Args:
        directory: a run directory with one peer.
        peer: its directory is the first peer's in `directory`.
        report: whether to write plots and report at the end.
    """

    directory: RunDirectory
    peer: PeerOptions
    report: bool = True


def join_swarm(manifest: SwarmGame, folder: Path, options: JoinOptions, *, notify: Notify) -> ExitCode:
    """Join a swarm, play until the end of the game or a signal, and leave.

    Raises:
        InvalidManifest: nothing was started, and nothing was written.
        Temporary: no member could be reached, or another process holds the folder.
    """
    began = time.monotonic()
    for warning in check(manifest, folder).warnings:
        notify(f"warning: {warning}")
    directory, max_rounds = options.directory, manifest.spec.game.max_rounds
    with directory.locked():
        directory.refuse_other_game(manifest_data(manifest))
        directory.keep_manifest(manifest_data(manifest))
        prepare(manifest, folder)
        directory.keep_source(folder)
        files = directory.peer(0)
        files.root.mkdir(parents=True, exist_ok=True)
        title = f"{manifest.metadata.name}: one more peer"
        display = RunDisplay(title, max_rounds, {0: files}, warnings=False)
        state = "failed"
        with display:
            try:
                with display.refreshing():
                    code = run_peer(manifest, folder, options.peer)
                state = "finished" if code is ExitCode.DONE else "stopped"
            finally:
                display.refresh({0: state}, now=True)
        before = directory.progress()
        seconds = time.monotonic() - began + (before.seconds if before is not None else 0.0)
        directory.record_progress(RunProgress(1, max_rounds, finished=code is ExitCode.DONE, seconds=seconds))
        if options.report and display.peers[0].rounds:
            from swarmgame.report import write_report

            for sentence in write_report(directory).sentences:
                notify(sentence)
            notify(f"report: {directory.report}")
        if code is ExitCode.DONE:
            notify(f"a model of it, for transformers: swarmgame export {directory.root} FOLDER")
    return code
