"""Huge pages: make forks of a process that has imported much cheaper.

Half the time of a fork and its end goes into copying and freeing the entries of page tables, one for every 4 KiB. In
huge pages of 2 MiB there is one for 512 of these. `collapse` moves the heap into them, which takes 10 ms a page.

Source: Linux, madvise(2), MADV_COLLAPSE (from 6.1); other kernels refuse it, and nothing changes.
"""

from __future__ import annotations

import ctypes
import os

_COLLAPSE = 25
_SIZE = 2 * 2**20


class HugePages:
    """The heap of this process, whose map is opened before files are out of reach."""

    def __init__(self) -> None:
        try:
            self.descriptor = os.open("/proc/self/maps", os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            self.descriptor = -1
        self._done: set[int] = set()
        self._libc = ctypes.CDLL(None)
        self._libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]

    def collapse(self) -> int:
        """Move what is new in the heap into huge pages; return their number."""
        moved = 0
        for start, end in self._regions():
            for address in range(-(-start // _SIZE) * _SIZE, end - _SIZE + 1, _SIZE):
                if address not in self._done and self._libc.madvise(address, _SIZE, _COLLAPSE) == 0:
                    self._done.add(address)
                    moved += 1
        return moved

    def _regions(self) -> list[tuple[int, int]]:
        if self.descriptor < 0:
            return []
        os.lseek(self.descriptor, 0, os.SEEK_SET)
        text = b""
        while chunk := os.read(self.descriptor, 1 << 16):
            text += chunk
        found = []
        for line in text.decode(errors="replace").splitlines():
            fields = line.split()
            if fields[1] == "rw-p" and (len(fields) < 6 or fields[5] == "[heap]"):
                start, end = (int(part, 16) for part in fields[0].split("-"))
                found.append((start, end))
        return found
