"""Exports: a policy written as a folder with its model card, and the observer that writes them during a game.

A folder is written under a temporary name beside its final one and then renamed, so it is complete or absent.
`swarmgame.json` in it tells what it was made from, and marks it as an export: no other folder is ever replaced.
Invariant: writing one changes neither the policy nor a random state.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

from safetensors.torch import save_model
from torch.nn import Module

from swarmgame.errors import BadUsage, Temporary, writing
from swarmgame.game.components import Notice, Trainer
from swarmgame.game.report import Observer, RoundReport
from swarmgame.game.state import GameState, Rewards
from swarmgame.runtime.assembly import check_adapters
from swarmgame.runtime.model_card import ExportRecord, model_card
from swarmgame_api.export import ExportSpec

logger = logging.getLogger(__name__)

RECORD = "swarmgame.json"


def write_export(
    trainer: Trainer, record: ExportRecord, folder: Path, *, merge_adapters: bool = True, replace: bool = False
) -> None:
    """Write a policy and its model card into a folder.

    Args:
        folder: missing, empty, or (with `replace`) an earlier export.
        merge_adapters: of a policy with adapters: write one complete model.

    Raises:
        BadUsage: the folder holds something else, or the policy cannot be exported so.
        NotWritable: the disk is full, or the folder cannot be written.
    """
    folder = folder.resolve()
    refuse_used_folder(folder, replace=replace)
    if not merge_adapters and not trainer.has_adapters:
        raise BadUsage("this policy has no adapters to keep apart (spec.game.trainer.with.lora): export it without")
    temporary = folder.with_name(f".{folder.name}.tmp-{os.getpid()}")
    with writing(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(temporary, ignore_errors=True)
        try:
            temporary.mkdir()
            _write_policy(trainer, temporary, merge_adapters=merge_adapters)
            card = model_card(record, [path.name for path in temporary.iterdir()])
            (temporary / "README.md").write_text(card, encoding="utf-8")
            described = json.dumps(record.as_json(), indent=1, ensure_ascii=False)
            (temporary / RECORD).write_text(described + "\n", encoding="utf-8")
            for path in temporary.rglob("*.safetensors"):
                path.chmod((temporary / RECORD).stat().st_mode)  # the library writes files for their owner alone
            _flush(temporary)
            _put(temporary, folder)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def refuse_used_folder(folder: Path, *, replace: bool) -> None:
    """Check that a folder may be written: it is missing or empty or, with `replace`, an export.

    Raises:
        BadUsage: it is a file, or holds something else.
    """
    with writing(folder):
        if folder.exists() and not folder.is_dir():
            raise BadUsage(f"{folder} is not a folder")
        used = folder.is_dir() and any(folder.iterdir())
    if used and not (folder / RECORD).is_file():
        raise BadUsage(f"{folder} is not empty and holds no earlier export: name another folder")
    if used and not replace:
        raise BadUsage(f"{folder} holds an earlier export: replace it with --force, or name another folder")


class ExportWriter(Observer):
    """Writes exports during a game and at its end, into a folder of the peer; keeps the newest.

    A failure during the game is logged, and the game goes on; one at the end is an error.

    Args:
        folder: of the exports: `round-00000200` after 200 rounds.
        record: returns the record of the policy after that many rounds.

    Raises:
        InvalidManifest: adapters are to be kept apart, and the trainer has none.
    """

    def __init__(
        self, trainer: Trainer, spec: ExportSpec, folder: Path, *, record: Callable[[int], ExportRecord]
    ) -> None:
        check_adapters(spec, trainer.has_adapters)
        self._trainer = trainer
        self._spec = spec
        self._folder = folder
        self._record = record
        self._max_rounds = 0
        self._failed = 0
        self._reason = ""

    def game_started(self, first_round: int, max_rounds: int) -> None:
        self._max_rounds = max_rounds

    def round_finished(self, report: RoundReport, state: GameState, rewards: Rewards) -> None:
        rounds, every = report.round + 1, self._spec.every_rounds
        if every is None or rounds % every or (self._spec.at_end and rounds >= self._max_rounds):
            return
        try:
            self._write(rounds)
        except (BadUsage, Temporary) as error:
            logger.error("no export after %d rounds, the game goes on: %s", rounds, error)
            self._failed += 1
            self._reason = self._reason or str(error)

    def notices(self) -> Sequence[Notice]:
        """Return how many exports failed, with the first reason; nothing without one."""
        text = f"an export during the game failed: {self._reason}"
        return (Notice("export-failed", text, self._failed),) if self._failed else ()

    def game_finished(self, rounds: int) -> None:
        if self._spec.at_end and rounds >= self._max_rounds:
            self._write(rounds)

    def _write(self, rounds: int) -> None:
        target = export_folder(self._folder, rounds)
        merge = self._spec.adapters == "Merged"
        write_export(self._trainer, self._record(rounds), target, merge_adapters=merge, replace=True)
        logger.info("exported the policy after %d rounds to %s", rounds, target)
        with writing(self._folder):
            for old in sorted(self._folder.glob("round-*"))[: -self._spec.keep]:
                shutil.rmtree(old)
            for leftover in self._folder.glob(".round-*"):  # of a process that was killed while it wrote
                shutil.rmtree(leftover)


def export_folder(exports: Path, rounds: int) -> Path:
    """Return the folder of the export after that many rounds."""
    return exports / f"round-{rounds:08d}"


def _write_policy(trainer: Trainer, folder: Path, *, merge_adapters: bool) -> None:
    if type(trainer).export is Trainer.export:
        _write_modules(trainer, folder)
    elif merge_adapters:
        trainer.export(folder)  # an author's `export(folder)` need not know of adapters
    else:
        trainer.export(folder, merge_adapters=False)
    if not any(folder.iterdir()):
        raise BadUsage(f"{type(trainer).__name__}.export wrote no file: let it write the policy into the folder")


def _write_modules(trainer: Trainer, folder: Path) -> None:
    """Write each torch module that is an attribute of the trainer, as `NAME.safetensors`, and their classes."""
    modules = {name.lstrip("_"): value for name, value in vars(trainer).items() if isinstance(value, Module)}
    if not modules:
        raise BadUsage(
            f"{type(trainer).__name__} has no torch module as an attribute: give it a method export(folder) that "
            "writes its policy"
        )
    for name, module in modules.items():
        save_model(module, str(folder / f"{name}.safetensors"))
    classes = {name: f"{type(module).__module__}.{type(module).__qualname__}" for name, module in modules.items()}
    (folder / "modules.json").write_text(json.dumps(classes, indent=1) + "\n", encoding="utf-8")


def _flush(folder: Path) -> None:
    """Write all files to the disk: after a crash a renamed folder must not hold half of a file."""
    for path in (*(path for path in folder.rglob("*") if path.is_file()), folder):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _put(temporary: Path, folder: Path) -> None:
    """Rename the finished folder. An earlier export stays complete until then."""
    if not (folder / RECORD).exists():
        temporary.rename(folder)
        return
    old = folder.with_name(f".{folder.name}.old-{os.getpid()}")
    folder.rename(old)
    try:
        temporary.rename(folder)
    except OSError:
        old.rename(folder)
        raise
    shutil.rmtree(old)
