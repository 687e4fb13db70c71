"""The observers of a peer's first rank: warnings, metrics, archive, checkpoints, status, exports and trackers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import yaml

import swarmgame
from swarmgame.game.report import Observer
from swarmgame.observability.diagnostics.observer import DiagnosticsObserver
from swarmgame.observability.metrics import MetricsObserver, PeerMetrics
from swarmgame.observability.metrics_file import MetricsFile
from swarmgame.observability.peer_progress import PeerProgress
from swarmgame.observability.run_directory import PeerDirectory, write_atomically
from swarmgame.observability.status import PeerStatus, StatusObserver
from swarmgame.observability.tracker import Tracker
from swarmgame.runtime.assembly import Components, ResolvedGame, facts_of, make_trackers, resolved_data
from swarmgame.runtime.checkpoint import Checkpoint, CheckpointStore, CheckpointWriter
from swarmgame.runtime.export import ExportWriter
from swarmgame.runtime.model_card import ExportRecord, make_record
from swarmgame.runtime.options import PeerOptions
from swarmgame_api.manifest import SwarmGame

if TYPE_CHECKING:
    from swarmgame.archive.writer import RolloutArchive


def diagnostics(
    manifest: SwarmGame, options: PeerOptions, components: Components, status: PeerStatus, metrics: PeerMetrics
) -> DiagnosticsObserver:
    """Return the observer that warns; it comes first, so that a failure of another one hides no warning."""
    return DiagnosticsObserver(
        facts_of(manifest, components),
        components.rewards,
        components.trainer,
        path=PeerDirectory(options.directory).warnings,
        index=options.index,
        status=status,
        metrics=metrics,
    )


def record_keepers(
    manifest: SwarmGame,
    options: PeerOptions,
    store: CheckpointStore,
    saved: Checkpoint | None,
    state: Callable[[], Mapping[str, Any]],
    status: PeerStatus,
    metrics: PeerMetrics,
    archive: RolloutArchive | None,
) -> list[Observer]:
    """Return the observers that write files and figures. Metrics and the archive come before checkpoints: after a crash
    between them a line is written twice, and the resume removes the first; none is lost.
    """

    def saved_checkpoint(next_round: int, seconds: float) -> None:
        status.change(checkpoint=next_round)
        metrics["checkpoint_seconds"].observe(seconds)

    return [
        MetricsFile(
            PeerDirectory(options.directory).metrics,
            index=options.index,
            first_round=saved.next_round if saved is not None else 0,
            skipped=PeerDirectory(options.directory).skipped,
        ),
        *([archive] if archive is not None else []),
        CheckpointWriter(
            store, every_rounds=manifest.spec.storage.checkpoints.every_rounds, state=state, saved=saved_checkpoint
        ),
        MetricsObserver(metrics),
        StatusObserver(status),
    ]


def export_writers(manifest: SwarmGame, options: PeerOptions, components: Components) -> list[Observer]:
    """Return the observer that exports the policy, where the game has one. It comes after the checkpoint's."""
    spec = manifest.spec.model.export if manifest.spec.model is not None else None
    if spec is None:
        return []
    files = PeerDirectory(options.directory)

    def record(rounds: int) -> ExportRecord:
        played = PeerProgress(options.index, files)
        played.refresh()
        lines = played.rounds.values()
        return make_record(manifest, lines, peer=options.index, rounds=rounds, release=swarmgame.__version__)

    return [ExportWriter(components.trainer, spec, files.exports, record=record)]


def trackers(
    manifest: SwarmGame, resolved: ResolvedGame, options: PeerOptions, cleanup: ExitStack
) -> tuple[Tracker, ...]:
    """Return the experiment trackers of rank 0, and write the options that the report shows."""
    files = PeerDirectory(options.directory.absolute())
    text = yaml.safe_dump(resolved_data(manifest, resolved), sort_keys=False, allow_unicode=True)
    write_atomically(files.options, text)
    name = files.run_name or manifest.metadata.name
    found = make_trackers(manifest, resolved, name, options.index, files.root)
    for tracker in found:
        cleanup.callback(tracker.close)
    return found
