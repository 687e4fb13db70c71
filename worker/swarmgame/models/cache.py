"""The cache of models that this project makes itself: each is one folder, as `save_pretrained` writes it.

Invariant: a folder in the cache is complete (written under another name, then renamed), and its name is a digest of
everything that it was made from. Of several processes, one makes the model and the others wait.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock

from swarmgame.errors import writing

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_COMPLETE = "config.json"
"""The file that every complete model has."""


def model_folder(cache: Path, kind: str, ingredients: Sequence[object]) -> Path:
    """Return the place of a model in the cache.

    Args:
        cache: the cache's folder.
        kind: begins the folder's name.
        ingredients: everything that the model is made from, as JSON can show it.
    """
    digest = hashlib.blake2b(json.dumps(list(ingredients)).encode(), digest_size=12, person=b"swarmgame-model")
    return cache / "models" / f"{kind}-{digest.hexdigest()}"


def is_complete(folder: Path) -> bool:
    """Return whether the cache has a model."""
    return (folder / _COMPLETE).is_file()


def ensure_folder(folder: Path, make: Callable[[Path], None]) -> None:
    """Make a model unless the cache has it. Idempotent, and safe with several processes.

    Args:
        folder: where the model belongs.
        make: writes the model into an empty folder.

    Raises:
        NotWritable: the disk is full, or the cache is read-only.
    """
    if is_complete(folder):
        return
    # Errors of `make` itself, such as an unreadable source, must not be reported as errors of the cache.
    with writing(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(f"{folder}.lock")
        lock.acquire()
    try:
        if is_complete(folder):
            return
        with writing(folder):
            aside = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
        try:
            make(aside)
            with writing(folder):
                _put(aside, folder)
        finally:
            shutil.rmtree(aside, ignore_errors=True)
    finally:
        lock.release()


def save_model(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Write a model with its tokenizer.

    Raises:
        NotWritable: the disk is full, or the folder is read-only.
    """
    from transformers.utils import logging as transformers_logging

    # Its progress bars would break the live table of a run.
    transformers_logging.disable_progress_bar()
    # transformers writes on the first rank only; here the rank that holds the lock writes.
    model.__dict__["should_save_on_this_rank"] = lambda _: True
    with writing(folder):
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)


def _put(aside: Path, folder: Path) -> None:
    """Rename a finished model to its final name. An existing complete model stays, since another process may be
    loading it: the lock may fail to exclude two processes (network file systems, a cleared cache).
    """
    complete = folder / _COMPLETE
    if folder.exists() and not complete.is_file():  # left by an interrupted process
        shutil.rmtree(folder)
    try:
        os.rename(aside, folder)  # refuses a folder that is not empty
    except OSError:
        if not complete.is_file():
            raise
