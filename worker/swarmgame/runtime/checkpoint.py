"""Checkpoints: the complete state for an exact resume, written so that a crash at any moment leaves the last one
usable.

A checkpoint is a folder `round-00000012` (the next round to play): `tensors.safetensors`, `state.json`, and
`manifest.json` with the format version and the hashes of both, written last. The folder is written under a temporary
name, flushed and renamed. Invariant: a folder with its final name and matching hashes is complete; any other is named
in the log and skipped. One of another format version is an error: the run was not played by this release.
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
from safetensors.torch import save as save_tensors

from swarmgame.errors import BadData
from swarmgame.game.report import Observer, RoundReport
from swarmgame.game.state import GameState, Rewards

logger = logging.getLogger(__name__)

FORMAT_VERSION = 2
"""Of the state and of how it is stored. Raise it with every change that an older checkpoint does not fit."""
_STATE, _TENSORS, _MANIFEST = "state.json", "tensors.safetensors", "manifest.json"


@dataclass(frozen=True)
class Checkpoint:
    """A complete checkpoint: the round to go on with, and a tree of tensors and JSON-like values."""

    next_round: int
    state: Mapping[str, Any]
    path: Path


class CheckpointStore:
    """The checkpoints of one peer, in one folder.

    Args:
        folder: created when missing.
        keep: how many are kept; at least 2, so that there is another one when the newest is damaged.
    """

    def __init__(self, folder: Path, *, keep: int = 3) -> None:
        self.folder = folder
        self.keep = max(keep, 2)

    def save(self, next_round: int, state: Mapping[str, Any]) -> Path:
        """Write a checkpoint, and remove the oldest beyond `keep`.

        Raises:
            OSError: the disk is full or gone; earlier checkpoints are untouched.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        tensors: dict[str, torch.Tensor] = {}
        tree = flatten(state, "", tensors)
        files = {_TENSORS: save_tensors(tensors), _STATE: json.dumps(tree, allow_nan=False).encode()}
        manifest = {
            "format": FORMAT_VERSION,
            "nextRound": next_round,
            "files": {
                name: {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)} for name, data in files.items()
            },
        }
        final = self.folder / f"round-{next_round:08d}"
        temporary = self.folder / f".tmp-{final.name}-{os.getpid()}"
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir()
        for name, data in files.items():
            _write_flushed(temporary / name, data)
        _write_flushed(temporary / _MANIFEST, json.dumps(manifest, indent=1).encode())
        _flush_folder(temporary)
        if final.exists():
            # The same round again, after a resume: the old folder stays complete until the new one is.
            replaced = self.folder / f".old-{final.name}-{os.getpid()}"
            final.rename(replaced)
            temporary.rename(final)
            shutil.rmtree(replaced)
        else:
            temporary.rename(final)
        _flush_folder(self.folder)
        self._prune()
        return final

    def load_latest(self) -> Checkpoint | None:
        """Return the newest complete checkpoint, or None. Each damaged one is named in the log and skipped.

        Raises:
            BadData: one has another format version.
        """
        for path in reversed(self._folders()):
            try:
                manifest = json.loads((path / _MANIFEST).read_bytes())
                version = int(manifest["format"])
            except (OSError, ValueError, KeyError, TypeError) as error:
                logger.error("checkpoint skipped: %s: no usable %s (%s)", path, _MANIFEST, error)
                continue
            if version != FORMAT_VERSION:
                raise BadData(other_version(path, f"is of format version {version}", f"version {FORMAT_VERSION}"))
            try:
                return self._load(path, manifest)
            except BadData as error:
                logger.error("checkpoint skipped: %s", error)
        return None

    def rounds(self) -> list[int]:
        """Return the next rounds of the checkpoints that are there, complete or not, the oldest first."""
        return [int(path.name.removeprefix("round-")) for path in self._folders()]

    def load(self, next_round: int) -> Checkpoint:
        """Return one checkpoint.

        Raises:
            BadData: it is missing, damaged, or of another format version.
        """
        path = self.folder / f"round-{next_round:08d}"
        try:
            manifest = json.loads((path / _MANIFEST).read_bytes())
            version = int(manifest["format"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise BadData(f"{path}: no usable {_MANIFEST} ({error})") from error
        if version != FORMAT_VERSION:
            raise BadData(other_version(path, f"is of format version {version}", f"version {FORMAT_VERSION}"))
        return self._load(path, manifest)

    def _folders(self) -> list[Path]:
        return sorted(path for path in self.folder.glob("round-*") if path.is_dir()) if self.folder.is_dir() else []

    def _load(self, path: Path, manifest: Mapping[str, Any]) -> Checkpoint:
        try:
            files: dict[str, bytes] = {}
            for name in (_TENSORS, _STATE):
                data = (path / name).read_bytes()
                if hashlib.sha256(data).hexdigest() != manifest["files"][name]["sha256"]:
                    raise BadData(f"{path / name}: the content does not match the hash in {_MANIFEST}")
                files[name] = data
            return Checkpoint(
                int(manifest["nextRound"]), _unflatten(json.loads(files[_STATE]), load_tensors(files[_TENSORS])), path
            )
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise BadData(f"{path}: not a complete checkpoint ({type(error).__name__}: {error})") from error

    def _prune(self) -> None:
        for path in self._folders()[: -self.keep]:
            shutil.rmtree(path)
        for leftover in (*self.folder.glob(".tmp-round-*"), *self.folder.glob(".old-round-*")):
            shutil.rmtree(leftover)


class CheckpointWriter(Observer):
    """Saves a checkpoint every `every_rounds` rounds, and when the game ends.

    Args:
        state: returns the tree to save.
        saved: called after each save, with the next round and the seconds that it took.
    """

    def __init__(
        self,
        store: CheckpointStore,
        *,
        every_rounds: int,
        state: Callable[[], Mapping[str, Any]],
        saved: Callable[[int, float], None],
    ) -> None:
        self._store = store
        self._every = every_rounds
        self._state = state
        self._saved = saved
        self._last: int | None = None

    def game_started(self, first_round: int, max_rounds: int) -> None:
        self._last = first_round

    def round_finished(self, report: RoundReport, state: GameState, rewards: Rewards) -> None:
        if (report.round + 1) % self._every == 0:
            self._save(report.round + 1)

    def game_finished(self, rounds: int) -> None:
        if rounds != self._last:
            self._save(rounds)

    def _save(self, next_round: int) -> None:
        began = time.perf_counter()
        self._store.save(next_round, self._state())
        self._last = next_round
        self._saved(next_round, time.perf_counter() - began)


def other_version(path: Path, found: str, written: str) -> str:
    """Return what to do about a checkpoint of another release, as a sentence."""
    return (
        f"{path} {found}; this release writes {written}: start afresh with --fresh, or go on with the release that "
        "wrote it"
    )


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
