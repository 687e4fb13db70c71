"""The state of a Dev chain on disk: anvil's file, and a copy of its last complete content.

anvil writes its file in place every few seconds, so a full disk or a kill leaves half a file, with which it never
starts again. The copy is replaced in one step, and stands in for such a file.
"""

from __future__ import annotations

import itertools
import json
import logging
import os
import shutil
from pathlib import Path

log = logging.getLogger(__name__)


class StateFile:
    """The state of one chain.

    Args:
        folder: where the files are: `state.json`, `state.copy.json`, and `state.broken.json` (`state.broken.1.json` …
            for later ones).
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / "state.json"
        self._copy = folder / "state.copy.json"
        self._kept = (0, 0)
        self._cannot_keep = False

    def keep(self) -> None:
        """Copy the file where it is complete and has changed; a warning is logged once where it cannot be copied."""
        try:
            found = self.path.stat()
            if (found.st_mtime_ns, found.st_size) == self._kept or not self._is_complete():
                return
            temporary = self._copy.with_suffix(".new")
            shutil.copyfile(self.path, temporary)
            with temporary.open("rb") as copied:
                os.fsync(copied.fileno())
            os.replace(temporary, self._copy)
            self._kept = (found.st_mtime_ns, found.st_size)
        except FileNotFoundError:
            return
        except OSError as error:
            if not self._cannot_keep:
                free = shutil.disk_usage(self.path.parent).free >> 20
                log.warning(
                    "the state of the Dev chain cannot be kept in %s: %s (%d MiB are free); a chain that ends now may "
                    "lose its last minutes: make room",
                    self.path.parent,
                    error.strerror,
                    free,
                )
            self._cannot_keep = True

    def set_aside(self, reason: str) -> bool:
        """Put the copy in the place of half a file, and return True.

        False where the file is whole or there is none: anvil ended for another reason, such as a port that is taken.
        """
        if not self.path.exists() or self._is_json():
            return False
        broken = self._unused_name()
        os.replace(self.path, broken)
        if self._copy.exists():
            os.replace(self._copy, self.path)
            log.warning("%s; the Dev chain goes on from the copy of its state, %s has the other", reason, broken)
        else:
            log.warning("%s; the Dev chain begins anew without its reports, %s has its state", reason, broken)
        return True

    def _is_json(self) -> bool:
        try:
            json.loads(self.path.read_bytes())
        except ValueError:
            return False
        return True

    def _unused_name(self) -> Path:
        later = (f"state.broken.{number}.json" for number in itertools.count(1))
        names = itertools.chain(["state.broken.json"], later)
        return next(path for path in map(self.path.with_name, names) if not path.exists())

    def _is_complete(self) -> bool:
        with self.path.open("rb") as file:
            if os.fstat(file.fileno()).st_size < 2:
                return False
            file.seek(-1, os.SEEK_END)
            return file.read(1) == b"}"
