"""Export of a run's checkpoint: choose it, create its trainer again, and write the folder.

The run may be finished, stopped or running: a checkpoint that its peer deletes meanwhile is replaced by the next one.
Nothing is sampled or trained, and nothing in the run's folder changes.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import swarmgame
from swarmgame.errors import BadData, BadUsage
from swarmgame.game.components import DataManager, Trainer
from swarmgame.game.demonstrations import Demonstrations
from swarmgame.observability.peer_progress import PeerProgress
from swarmgame.observability.run_directory import PeerDirectory, RunDirectory
from swarmgame.runtime.assembly import context_of, local_modules, resolve_game
from swarmgame.runtime.checkpoint import Checkpoint, CheckpointStore
from swarmgame.runtime.checkpoint_manifest import OtherVersion
from swarmgame.runtime.export import export_folder, refuse_used_folder, write_export
from swarmgame.runtime.model_card import ExportRecord, evaluations_of, make_record
from swarmgame_api.load import load_manifest
from swarmgame_api.manifest import SwarmGame

logger = logging.getLogger(__name__)

Notify = Callable[[str], None]
ATTEMPTS = 5
"""To read the newest checkpoint of a peer that is writing and deleting some."""


@dataclass(frozen=True)
class ExportChoice:
    """Which policy of a run is exported.

    Args:
        peer: its number; None: any peer with `best`, else the first that has a checkpoint.
        best: the one with the best held-out evaluation, instead of the newest.
        rounds: the checkpoint after this many rounds; None: the newest, or that of the best evaluation.
    """

    peer: int | None = None
    best: bool = False
    rounds: int | None = None


def export_run(
    directory: RunDirectory,
    folder: Path,
    choice: ExportChoice,
    *,
    merge_adapters: bool,
    replace_export: bool,
    source: Path | None,
    notify: Notify,
    pushed: bool = False,
) -> ExportRecord:
    """Write the policy of a run's checkpoint, and return its record.

    Args:
        source: the folder with the game's own modules; None: as the run recorded it.
        notify: receives remarks for the user.
        pushed: the folder will be pushed to the hub, so others must be able to load it.

    Raises:
        BadUsage: the choice does not exist in this run, or the folder cannot be written.
        BadData: the run has no checkpoint that can be used.
        InvalidManifest: a component or the base model cannot be loaded any more.
        Temporary: the disk is full.
    """
    refuse_used_folder(folder.absolute(), replace=replace_export)
    if not directory.manifest.is_file():
        raise BadData(f"{directory.root} is not a run: it has no game.yaml")
    manifest = load_manifest(directory.manifest)
    if pushed and not merge_adapters and manifest.spec.model is not None:
        base = manifest.spec.model.uri
        if not base.startswith("hf://"):
            raise BadUsage(f"the base {base} of these adapters is not on the hub: push the model without --adapter")
    peer, checkpoint = choose(directory, choice, notify)
    return export_checkpoint(
        manifest,
        source or directory.source() or directory.root,
        peer,
        checkpoint,
        folder,
        merge_adapters=merge_adapters,
        replace_export=replace_export,
    )


def export_missing(manifest: SwarmGame, source: Path, files: PeerDirectory, index: int) -> bool:
    """Write the export at the end of a finished game, if the game has one and it is missing: its peer was killed
    before it had written it. Return whether it was written.
    """
    spec = manifest.spec.model.export if manifest.spec.model is not None else None
    target = export_folder(files.exports, manifest.spec.game.max_rounds)
    if spec is None or not spec.at_end or target.exists():
        return False
    saved = CheckpointStore(files.checkpoints).load_latest()
    if saved is None or saved.next_round < manifest.spec.game.max_rounds:
        raise BadData(f"{files.checkpoints} has no checkpoint after the last round, so its policy cannot be exported")
    peer = PeerProgress(index, files)
    peer.refresh()
    target = export_folder(files.exports, saved.next_round)
    export_checkpoint(
        manifest, source, peer, saved, target, merge_adapters=spec.adapters == "Merged", replace_export=True
    )
    return True


def export_checkpoint(
    manifest: SwarmGame,
    source: Path,
    peer: PeerProgress,
    checkpoint: Checkpoint,
    folder: Path,
    *,
    merge_adapters: bool,
    replace_export: bool,
) -> ExportRecord:
    """Write the policy of one checkpoint, and return its record.

    Args:
        source: the folder of the game's own modules.

    Raises:
        BadData: the checkpoint is of another game or model.
    """
    record = make_record(
        manifest,
        peer.rounds.values(),
        peer=peer.index,
        rounds=checkpoint.next_round,
        release=swarmgame.__version__,
    )
    with local_modules(source), trainer_of(manifest, source, checkpoint) as trainer:
        write_export(trainer, record, folder, merge_adapters=merge_adapters, replace=replace_export)
    return record


@contextmanager
def trainer_of(manifest: SwarmGame, source: Path, checkpoint: Checkpoint) -> Iterator[Trainer]:
    """Create the trainer of a checkpoint, on the CPU, with its saved state.

    Raises:
        BadData: the checkpoint is of another game or model.
    """
    resolved = resolve_game(manifest, source)
    context = context_of(manifest, folder=resolved.folder)
    data: DataManager | None = None
    trainer: Trainer | None = None
    try:
        if issubclass(resolved.data.component, Demonstrations):
            # They are part of what a builtin model was made from.
            data = resolved.data.component(resolved.data.config, context)  # type: ignore[assignment]
            context = replace(context, demonstrations=data)  # type: ignore[arg-type]
        component: type[Trainer] = resolved.trainer.component  # type: ignore[assignment]
        try:
            config, state = component.prepare_export(resolved.trainer.config, checkpoint.state["trainer"])
        except (KeyError, TypeError, AttributeError) as error:
            raise _misfit(checkpoint, error) from error
        trainer = component(config, context)
        try:
            trainer.load_state_dict(state)
        except (KeyError, ValueError, RuntimeError, TypeError, AttributeError) as error:
            raise _misfit(checkpoint, error) from error
        yield trainer
    finally:
        for component_ in (trainer, data):
            if component_ is not None:
                component_.close()


def _misfit(checkpoint: Checkpoint, error: Exception) -> BadData:
    return BadData(
        f"{checkpoint.path}: the checkpoint does not fit the run's game.yaml ({error}): one of them is of another game "
        "or model"
    )


# ── the choice


def choose(directory: RunDirectory, choice: ExportChoice, notify: Notify) -> tuple[PeerProgress, Checkpoint]:
    """Return the peer and the checkpoint of a choice.

    Raises:
        BadUsage: there is no such peer, round or evaluation.
        BadData: there is no checkpoint that can be used.
    """
    if choice.best and choice.rounds is not None:
        raise BadUsage("--best and --round exclude each other: the best evaluation has its own round")
    peers = [PeerProgress(index, files) for index, files in directory.peers().items()]
    if choice.peer is not None:
        known = ", ".join(str(each.index) for each in peers) or "none"
        peers = [each for each in peers if each.index == choice.peer]
        if not peers:
            raise BadUsage(f"{directory.root.name} has no peer {choice.peer}; its peers are {known}")
    for each in peers:
        each.refresh()
    if choice.best:
        return _best(directory, peers, notify)
    peer = next((each for each in peers if _store(each).rounds()), None)
    if peer is None:
        raise BadData(f"{directory.root} has no checkpoint yet: the first comes after storage.checkpoints.everyRounds")
    if choice.rounds is None:
        return peer, _newest(peer, notify)
    if choice.rounds not in _store(peer).rounds():
        have = ", ".join(map(str, _store(peer).rounds()))
        raise BadUsage(f"peer {peer.index} has no checkpoint after {choice.rounds} rounds; it has them after {have}")
    return peer, _store(peer).load(choice.rounds, mapped=True)


def _best(directory: RunDirectory, peers: list[PeerProgress], notify: Notify) -> tuple[PeerProgress, Checkpoint]:
    """Return the checkpoint of the best evaluation; of equal ones the earliest, of the first peer."""
    evaluated = [(found, peer) for peer in peers for found in evaluations_of(peer.rounds.values())]
    if not evaluated:
        raise BadUsage(
            f"{directory.root.name} has no held-out evaluation yet (spec.game.evaluation), so no policy is the best: "
            "choose one with --peer"
        )
    evaluated.sort(key=lambda each: (-each[0].reward, each[0].rounds, each[1].index))
    best, best_peer = evaluated[0]
    for found, peer in evaluated:
        if found.rounds not in _store(peer).rounds():
            continue
        try:
            checkpoint = _store(peer).load(found.rounds, mapped=True)
        except OtherVersion:
            raise
        except BadData as error:
            notify(f"checkpoint skipped: {error}")
            continue
        if found is not best:
            notify(
                f"the best evaluation ({best.reward:.3f}, peer {best_peer.index} after {best.rounds} rounds) has no "
                f"checkpoint that can be used; this is the best of those that have one ({found.reward:.3f})"
            )
        return peer, checkpoint
    raise BadData(
        f"no evaluation of {directory.root.name} has a checkpoint that can be used: take the newest without --best"
    )


def _newest(peer: PeerProgress, notify: Notify) -> Checkpoint:
    store = _store(peer)
    damaged: set[str] = set()
    for _ in range(ATTEMPTS):
        for rounds in reversed(store.rounds()):
            try:
                return store.load(rounds, mapped=True)
            except OtherVersion:
                raise
            except BadData as error:
                if rounds not in store.rounds():
                    break  # its peer deleted it meanwhile: there is a newer one
                if str(error) not in damaged:
                    notify(f"checkpoint skipped: {error}")
                damaged.add(str(error))
        else:
            break
    raise BadData(f"{store.folder} has no complete checkpoint: {'; '.join(sorted(damaged)) or 'all were deleted'}")


def _store(peer: PeerProgress) -> CheckpointStore:
    return CheckpointStore(peer.directory.checkpoints)
