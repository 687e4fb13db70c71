"""Checkpoints: the complete state for an exact resume, written so that a crash at any moment leaves the last one
usable.

A checkpoint is a folder `round-00000012` (the next round to play): `tensors.safetensors`, `state.json`, and
`manifest.json` with the format version, the round, the hashes of both and one of itself, written last. The folder is
written under a temporary name, flushed and renamed. Invariant: a folder with its final name and matching hashes is
complete; any other is named in the log and skipped. One of another format version is an error: the run was not played
by this release.

The checkpoint of the best held-out evaluation so far is kept beyond the newest ones; `best.json` names it.
"""

from __future__ import annotations

import base64
import hashlib
import json
import logging
import math
import os
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load as load_tensors
from safetensors.torch import load_file
from safetensors.torch import save as save_tensors

from swarmgame.errors import BadData, writing
from swarmgame.game.report import Observer, RoundReport
from swarmgame.game.state import GameState, Rewards
from swarmgame.runtime.checkpoint_manifest import MANIFEST, OtherVersion, folder_of, make_manifest, read_manifest

logger = logging.getLogger(__name__)

_STATE, _TENSORS = "state.json", "tensors.safetensors"
_BEST = "best.json"


@dataclass(frozen=True)
class Checkpoint:
    """A complete checkpoint: the round to go on with, and a tree of tensors and JSON-like values."""

    next_round: int
    state: Mapping[str, Any]
    path: Path


@dataclass(frozen=True)
class BestEvaluation:
    """The best held-out evaluation so far: its mean reward, and the next round of the checkpoint with its weights."""

    next_round: int
    reward: float


class CheckpointStore:
    """The checkpoints of one peer, in one folder.

    Args:
        folder: created when missing.
        keep: how many are kept besides that of the best evaluation; at least 2, so that there is another one when the
            newest is damaged.
    """

    def __init__(self, folder: Path, *, keep: int = 3) -> None:
        self.folder = folder
        self.keep = max(keep, 2)

    def save(self, next_round: int, state: Mapping[str, Any], *, best: float | None = None) -> Path:
        """Write a checkpoint, and remove the oldest beyond `keep`.

        Args:
            best: the mean reward of the evaluation of these weights, if it is the best so far.

        Raises:
            NotWritable: the disk is full or read-only; earlier checkpoints are untouched, and no other folder is left.
        """
        with writing(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
        tensors: dict[str, torch.Tensor] = {}
        tree = flatten(state, "", tensors)
        files = {_TENSORS: save_tensors(tensors), _STATE: json.dumps(tree, allow_nan=False).encode()}
        final = self._folder(next_round)
        temporary = self.folder / f".tmp-{final.name}-{os.getpid()}"
        shutil.rmtree(temporary, ignore_errors=True)
        try:
            with writing(final):
                temporary.mkdir()
                for name, data in files.items():
                    _write_flushed(temporary / name, data)
                _write_flushed(temporary / MANIFEST, json.dumps(make_manifest(next_round, files), indent=1).encode())
                _flush_folder(temporary)
                _put(temporary, final)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)  # what a full disk left; after success there is none
        with writing(self.folder):
            _flush_folder(self.folder)
            if best is not None:
                record = self.folder / f".tmp-{_BEST}"
                _write_flushed(record, json.dumps({"nextRound": next_round, "reward": best}).encode())
                record.replace(self.folder / _BEST)
            self._prune()
        return final

    def best(self) -> BestEvaluation | None:
        """Return the best evaluation whose checkpoint is kept; None without one."""
        try:
            found = json.loads((self.folder / _BEST).read_bytes())
            best = BestEvaluation(int(found["nextRound"]), float(found["reward"]))
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError) as error:
            logger.error("%s cannot be read (%s): the next evaluation counts as the best", self.folder / _BEST, error)
            return None
        return best if self._folder(best.next_round).is_dir() else None

    def rounds(self) -> list[int]:
        """Return the next rounds of all checkpoints, complete or not, in order."""
        return [int(path.name.removeprefix("round-")) for path in self._folders()]

    def load(self, next_round: int, *, mapped: bool = False) -> Checkpoint:
        """Return one checkpoint.

        Args:
            mapped: map the tensors' file into memory instead of reading it: only what is used is read. Not for a
                peer that goes on, which deletes its checkpoints.

        Raises:
            BadData: it is missing or damaged.
            OtherVersion: another release wrote it.
        """
        path = self._folder(next_round)
        manifest = read_manifest(path)
        return self._load(path, manifest, mapped=mapped)

    def load_latest(self) -> Checkpoint | None:
        """Return the newest complete checkpoint, or None. Each damaged one is named in the log and skipped.

        Raises:
            OtherVersion: one has another format version.
        """
        for next_round in reversed(self.rounds()):
            try:
                return self.load(next_round)
            except OtherVersion:
                raise
            except BadData as error:
                logger.error("checkpoint skipped: %s", error)
        return None

    def _folder(self, next_round: int) -> Path:
        return self.folder / folder_of(next_round)

    def _folders(self) -> list[Path]:
        found = (path for path in self.folder.glob("round-*") if path.name.removeprefix("round-").isdigit())
        return sorted(path for path in found if path.is_dir()) if self.folder.is_dir() else []

    def _load(self, path: Path, manifest: Mapping[str, Any], *, mapped: bool) -> Checkpoint:
        try:
            files: dict[str, bytes] = {}
            for name in (_TENSORS, _STATE):
                if mapped and name == _TENSORS:
                    with (path / name).open("rb") as file:
                        digest = hashlib.file_digest(file, "sha256").hexdigest()
                else:
                    files[name] = (path / name).read_bytes()
                    digest = hashlib.sha256(files[name]).hexdigest()
                if digest != manifest["files"][name]["sha256"]:
                    raise BadData(f"{path / name}: the content does not match the hash in {MANIFEST}")
            tensors = load_file(path / _TENSORS) if mapped else load_tensors(files[_TENSORS])
            return Checkpoint(manifest["nextRound"], _unflatten(json.loads(files[_STATE]), tensors), path)
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise BadData(f"{path}: not a complete checkpoint ({type(error).__name__}: {error})") from error

    def _prune(self) -> None:
        best = self.best()
        for path in self._folders()[: -self.keep]:
            if best is None or path != self._folder(best.next_round):
                shutil.rmtree(path)
        for leftover in (*self.folder.glob(".tmp-round-*"), *self.folder.glob(".old-round-*")):
            shutil.rmtree(leftover)


class CheckpointWriter(Observer):
    """Saves a checkpoint every `every_rounds` rounds, after an evaluation that is the best so far, and when the game
    ends.

    Args:
        state: returns the tree to save.
        saved: called after each save, with the next round and the seconds that it took.
        announce: called where a checkpoint may be saved, with whether it is; other ranks then take part in `state`.
    """

    def __init__(
        self,
        store: CheckpointStore,
        *,
        every_rounds: int,
        state: Callable[[], Mapping[str, Any]],
        saved: Callable[[int, float], None],
        announce: Callable[[bool], None] = lambda saving: None,
    ) -> None:
        self._announce = announce
        self._store = store
        self._every = every_rounds
        self._state = state
        self._saved = saved
        self._last: int | None = None
        self._best = -math.inf

    def game_started(self, first_round: int, max_rounds: int) -> None:
        self._last = first_round
        best = self._store.best()
        # A later one is of a checkpoint that could not be read: its rounds are played again.
        self._best = best.reward if best is not None and best.next_round <= first_round else -math.inf

    def round_finished(self, report: RoundReport, state: GameState, rewards: Rewards) -> None:
        evaluated = report.evaluation.average.get("all", math.nan) if report.evaluation is not None else math.nan
        is_best, is_due = evaluated > self._best, (report.round + 1) % self._every == 0
        self._announce(is_best or is_due)
        if is_best:
            self._best = evaluated
            self._save(report.round + 1, best=evaluated)
        elif is_due:
            self._save(report.round + 1)

    def game_finished(self, rounds: int) -> None:
        self._announce(rounds != self._last)
        if rounds != self._last:
            self._save(rounds)

    def _save(self, next_round: int, best: float | None = None) -> None:
        began = time.perf_counter()
        self._store.save(next_round, self._state(), best=best)
        self._last = next_round
        self._saved(next_round, time.perf_counter() - began)


class CheckpointParticipant(Observer):
    """The part that the other ranks have in a checkpoint of a policy that all of them hold.

    Args:
        saving: returns what the first rank's `CheckpointWriter` announces.
        state: returns the trainer's state, a call of all ranks.
    """

    def __init__(self, saving: Callable[[], bool], state: Callable[[], object]) -> None:
        self._saving = saving
        self._state = state

    def round_finished(self, report: RoundReport, state: GameState, rewards: Rewards) -> None:
        self._take_part()

    def game_finished(self, rounds: int) -> None:
        self._take_part()

    def _take_part(self) -> None:
        if self._saving():
            self._state()


def _put(temporary: Path, final: Path) -> None:
    """Give a complete folder its final name."""
    if not final.exists():
        temporary.rename(final)
        return
    # The same round again, after a resume: the old folder stays complete until the new one is.
    replaced = final.with_name(f".old-{final.name}-{os.getpid()}")
    final.rename(replaced)
    temporary.rename(final)
    shutil.rmtree(replaced)


def _write_flushed(path: Path, data: bytes) -> None:
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _flush_folder(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


# ── a tree of tensors and plain values ⇄ JSON and a flat table of tensors
# A value that JSON does not have is an object with a single key that begins with "$"; mappings are lists of pairs, so
# that keys keep their type.


def flatten(value: Any, path: str, tensors: dict[str, torch.Tensor], *, copy: bool = True) -> Any:
    """Return a tree as JSON-like values, with each tensor's name in its place.

    Args:
        path: of this value in the tree; part of the names.
        tensors: where the tensors are added, by name; as copies on the CPU unless `copy` is False.

    Raises:
        TypeError: a value of another type.
    """
    match value:
        case torch.Tensor():
            # safetensors refuses views that share memory (tied weights): each entry is a copy.
            name = f"{len(tensors)}:{path}"
            tensors[name] = value.detach().to("cpu", copy=True).contiguous() if copy else value
            return {"$tensor": name}
        case Mapping():
            return {
                "$map": [
                    [flatten(k, "", tensors), flatten(v, f"{path}/{k}", tensors, copy=copy)] for k, v in value.items()
                ]
            }
        case tuple():
            return {"$tuple": [flatten(v, f"{path}/{i}", tensors, copy=copy) for i, v in enumerate(value)]}
        case list():
            return [flatten(v, f"{path}/{i}", tensors, copy=copy) for i, v in enumerate(value)]
        case bytes():
            return {"$bytes": base64.b64encode(value).decode()}
        case float() if not math.isfinite(value):
            return {"$float": str(value)}
        case None | bool() | int() | float() | str():
            return value
        case _:
            raise TypeError(f"a checkpoint cannot hold a {type(value).__name__} (at {path or 'the top'})")


def _unflatten(value: Any, tensors: Mapping[str, torch.Tensor]) -> Any:
    if isinstance(value, list):
        return [_unflatten(item, tensors) for item in value]
    if not isinstance(value, dict):
        return value
    ((kind, content),) = value.items()
    match kind:
        case "$tensor":
            return tensors[content]
        case "$map":
            return {_unflatten(k, tensors): _unflatten(v, tensors) for k, v in content}
        case "$tuple":
            return tuple(_unflatten(item, tensors) for item in content)
        case "$bytes":
            return base64.b64decode(content)
        case "$float":
            return float(content)
        case _:
            raise ValueError(f"unknown kind {kind} in {_STATE}")
