"""The observers of a peer's first rank: warnings, metrics, archive, checkpoints, status, exports and trackers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

import yaml

import swarmgame
from swarmgame.game.components import Notice
from swarmgame.game.remote_work import RemoteWork
from swarmgame.game.report import Observer, RoundReport
from swarmgame.game.state import GameState, Rewards
from swarmgame.observability.diagnostics.observer import DiagnosticsObserver
from swarmgame.observability.diagnostics.records import GameFacts
from swarmgame.observability.metrics import MetricsObserver, PeerMetrics
from swarmgame.observability.metrics_file import MetricsFile
from swarmgame.observability.peer_progress import PeerProgress
from swarmgame.observability.run_directory import PeerDirectory, write_atomically
from swarmgame.observability.status import PeerStatus, StatusObserver
from swarmgame.observability.tracker import Tracker
from swarmgame.runtime.assembly import Components, ResolvedGame, context_of, progression_of, resolved_data
from swarmgame.runtime.checkpoint import Checkpoint, CheckpointStore, CheckpointWriter
from swarmgame.runtime.export import ExportWriter
from swarmgame.runtime.model_card import ExportRecord, make_record
from swarmgame.runtime.options import PeerOptions
from swarmgame_api.manifest import SwarmGame

if TYPE_CHECKING:
    from swarmgame.archive.writer import RolloutArchive


class GivesUp(Protocol):
    """A writer of files without which the game goes on."""

    def notices(self) -> Sequence[Notice]:
        """Return what it has given up, and why."""
        ...


def diagnostics(
    manifest: SwarmGame,
    options: PeerOptions,
    components: Components,
    status: PeerStatus,
    metrics: PeerMetrics,
    writers: Sequence[GivesUp],
) -> DiagnosticsObserver:
    """Return the observer that warns; it comes first, so that a failure of another one hides no warning.

    Args:
        writers: what they have given up is warned of.
    """
    return DiagnosticsObserver(
        _facts_of(manifest, components),
        components.rewards,
        components.trainer,
        path=PeerDirectory(options.directory).warnings,
        index=options.index,
        status=status,
        metrics=metrics,
        notices=lambda: [notice for writer in writers for notice in writer.notices()],
    )


class RemoteWorkObserver(Observer):
    """Tells the budget of other peers' work how long a round has taken."""

    def __init__(self, work: RemoteWork) -> None:
        self._work = work

    def round_finished(self, report: RoundReport, state: GameState, rewards: Rewards) -> None:
        self._work.round_finished(report.rollouts, report.seconds)


def record_keepers(
    manifest: SwarmGame,
    options: PeerOptions,
    store: CheckpointStore,
    saved: Checkpoint | None,
    state: Callable[[], Mapping[str, Any]],
    status: PeerStatus,
    metrics: PeerMetrics,
    archive: RolloutArchive | None,
    announce: Callable[[bool], None],
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
            store,
            every_rounds=manifest.spec.storage.checkpoints.every_rounds,
            state=state,
            saved=saved_checkpoint,
            announce=announce,
        ),
        MetricsObserver(metrics),
        StatusObserver(status),
    ]


def export_writers(manifest: SwarmGame, options: PeerOptions, components: Components) -> list[ExportWriter]:
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


def make_trackers(
    manifest: SwarmGame, resolved: ResolvedGame, name: str, index: int, directory: Path
) -> tuple[Tracker, ...]:
    """Create the trackers of a peer; nothing is opened yet.

    Args:
        name: of the run.
        index, directory: of the peer.
    """
    options = resolved_data(manifest, resolved)
    # A tracker may be a service, and an author may have written a password into a variable of the pods.
    options["spec"]["peers"] = {
        key: value for key, value in options["spec"]["peers"].items() if key not in ("env", "podTemplate")
    }
    options["spec"] = {
        key: value for key, value in options["spec"].items() if key not in ("podDefaults", "podTemplates")
    }
    context = context_of(
        manifest, folder=resolved.folder, name=name, index=index, directory=directory.absolute(), manifest=options
    )
    return tuple(cast(Tracker, each.component(each.config, context)) for each in resolved.trackers)


def _facts_of(manifest: SwarmGame, components: Components) -> GameFacts:
    """Return what the rules of the diagnostics know of the game."""
    progression = progression_of(manifest)
    return GameFacts(
        single_peer=progression.single_peer,
        external_groups=progression.sharing.external_groups,
        evaluate_every=progression.evaluate_every,
        trains=getattr(components.trainer.config, "update", "") != "none",
        full_reward=components.rewards.full_reward,
    )
