"""A guest: one peer in this process, that joins a swarm which plays elsewhere, with the table of a run of one.

The peer itself is `swarmgame.runtime.peer`; here are its folder, its view and its report. Invariant: a folder belongs
to one game and one process at a time, as a run's does.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from threading import Event, Thread

from swarmgame.errors import ExitCode
from swarmgame.launch.live_table import JsonLines, View, view
from swarmgame.observability.peer_progress import KEEP_ROUNDS, PeerProgress
from swarmgame.observability.run_directory import RunDirectory, RunProgress
from swarmgame.runtime.assembly import check, prepare
from swarmgame.runtime.peer import PeerOptions, run_peer
from swarmgame_api.load import load_manifest, manifest_data

LOOK_SECONDS = 0.25


@dataclass(frozen=True)
class JoinOptions:
    """What `swarmgame join` was asked for.

    Args:
        directory: of the run of one.
        identity: the key file; None takes the one in the directory.
    """

    game: Path
    directory: Path
    initial_peers: tuple[str, ...]
    overrides: tuple[str, ...] = ()
    identity: Path | None = None
    port: int = 0
    http_port: int = 0
    announce: tuple[str, ...] = ()
    report: bool = True


def join_swarm(options: JoinOptions, *, say: Callable[[str], None]) -> ExitCode:
    """Joins, plays until the end of the game or a signal, and leaves.

    Raises:
        InvalidManifest: nothing was started, and nothing was written.
        Temporary: no member could be reached, or another process holds the folder.
    """
    manifest = load_manifest(options.game, options.overrides)
    folder = options.game.absolute().parent
    check(manifest, folder)
    directory = RunDirectory(options.directory.absolute())
    files = directory.peer(0)
    with directory.locked():
        directory.refuse_other_game(manifest_data(manifest))
        directory.keep_manifest(manifest_data(manifest))
        prepare(manifest, folder)
        files.root.mkdir(parents=True, exist_ok=True)
        progress = PeerProgress(0, files, state="running", keep=KEEP_ROUNDS)
        progress.refresh()
        shown = view(f"{manifest.metadata.name}: one more peer", manifest.spec.game.max_rounds)
        if isinstance(shown, JsonLines):
            shown.skip([progress])
        watcher = _Watcher(progress, shown)
        watcher.start()
        try:
            code = run_peer(
                PeerOptions(
                    game=options.game,
                    directory=files.root,
                    identity=options.identity or files.key,
                    overrides=options.overrides,
                    port=options.port,
                    http_port=options.http_port,
                    initial_peers=options.initial_peers,
                    announce=options.announce,
                    at_least=2,
                    threads=len(os.sched_getaffinity(0)),
                )
            )
            progress.state = "finished" if code is ExitCode.DONE else "stopped"
        except BaseException:
            progress.state = "failed"
            raise
        finally:
            watcher.close()
        directory.note(RunProgress(peers=1, max_rounds=manifest.spec.game.max_rounds, finished=code is ExitCode.DONE))
        if options.report and progress.rounds:
            from swarmgame.report import write_report

            write_report(directory)
            say(f"report: {directory.report}")
    return code


class _Watcher(Thread):
    """Draws the view while the main thread plays."""

    def __init__(self, progress: PeerProgress, shown: View) -> None:
        super().__init__(name="view", daemon=True)
        self._progress = progress
        self._shown = shown
        self._done = Event()

    def run(self) -> None:
        while not self._done.wait(LOOK_SECONDS):
            self._progress.fetch_status(timeout_seconds=1.0)
            self._progress.refresh()
            self._shown.show([self._progress])

    def close(self) -> None:
        self._done.set()
        self.join(timeout=5.0)
        self._progress.refresh()
        self._shown.close([self._progress])
