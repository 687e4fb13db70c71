"""A disk on which every write below some path fails: opening, writing, making and renaming."""

from __future__ import annotations

import builtins
import errno
import io
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from fnmatch import fnmatch
from typing import Any

import pytest

NUMBERS = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS)


class _FullFile:
    """A file that takes a few characters and then no more."""

    def __init__(self, file: Any, refuse: Callable[[], None], keeps: int) -> None:
        self._file, self._refuse, self._keeps = file, refuse, keeps

    def write(self, data: Any) -> int:
        self._file.write(data[: self._keeps])
        self._file.flush()
        self._refuse()  # returns while writes are left
        self._file.write(data[self._keeps :])
        return len(data)

    def __enter__(self) -> _FullFile:
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


class FailingDisk:
    """Counts the writes that it refuses.

    Args:
        pattern: of the paths that cannot be written, as of `fnmatch`.
        number: the operating system's error.
        after: writes that still succeed.
        half: accept opening, and keep a part of what is written.
    """

    def __init__(self, pattern: str, number: int, *, after: int = 0, half: bool = False) -> None:
        self.pattern, self.number, self.after, self.half = pattern, number, after, half
        self.refused = 0

    def hits(self, *paths: Any) -> bool:
        return any(isinstance(path, str | os.PathLike) and fnmatch(os.fspath(path), self.pattern) for path in paths)

    def refuse(self, path: Any) -> None:
        """Raise the error, unless some writes are left."""
        if self.after > 0:
            self.after -= 1
            return
        self.refused += 1
        raise OSError(self.number, os.strerror(self.number), os.fspath(path))

    @contextmanager
    def installed(self) -> Iterator[FailingDisk]:
        """Make writes fail while the block runs."""
        real_open, real_os_open = io.open, os.open

        def open_file(file: Any, mode: str = "r", *arguments: Any, **options: Any) -> Any:
            if not (self.hits(file) and set(mode) & set("wax+")):
                return real_open(file, mode, *arguments, **options)
            if not self.half:
                self.refuse(file)
                return real_open(file, mode, *arguments, **options)
            return _FullFile(real_open(file, mode, *arguments, **options), lambda: self.refuse(file), 5)

        def os_open(path: Any, flags: int, *arguments: Any, **options: Any) -> int:
            if self.hits(path) and flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
                self.refuse(path)
            return real_os_open(path, flags, *arguments, **options)

        def guarded(function: Callable[..., Any]) -> Callable[..., Any]:
            def call(*arguments: Any, **options: Any) -> Any:
                if self.hits(*arguments[:2]):
                    self.refuse(arguments[-1] if len(arguments) > 1 and self.hits(arguments[1]) else arguments[0])
                return function(*arguments, **options)

            return call

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(io, "open", open_file)
            patch.setattr(builtins, "open", open_file)
            patch.setattr(os, "open", os_open)
            for name in ("mkdir", "rename", "replace", "link"):
                patch.setattr(os, name, guarded(getattr(os, name)))
            yield self
