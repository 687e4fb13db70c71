"""Landlock: a process permanently gives up access to files and TCP, without any privilege.

`restrict` makes the system calls; the caller decides which paths stay readable. Where it returns a version, the
restriction is in force for this process and all its children, and cannot be lifted; where it returns 0, nothing has
changed. See docs/decisions/0007-sandbox-kernel-interfaces.md for why no package is used.

Source: Linux, Documentation/userspace-api/landlock.rst and include/uapi/linux/landlock.h.
"""

from __future__ import annotations

import ctypes
import functools
import os
import stat
import struct
from collections.abc import Iterable

_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446  # the same on x86_64 and aarch64
_VERSION_FLAG = 1
_RULE_PATH_BENEATH = 1

_READ_FILE = 1 << 2
_READ_DIRECTORY = 1 << 3
_FILE_RIGHTS = {1: 13, 2: 14, 3: 15, 4: 15, 5: 16}
"""Number of file rights by ABI version; later versions have as many as 5."""
_NETWORK_RIGHTS = 0b11
"""Binding and connecting TCP sockets; from ABI 4."""
_SCOPES = 0b11
"""Abstract unix sockets, and signals to processes outside; from ABI 6."""

_PR_SET_NO_NEW_PRIVS = 38


def abi() -> int:
    """Return the version of Landlock that the kernel has, 0 for none."""
    version = _syscall(_CREATE_RULESET, None, 0, _VERSION_FLAG)
    return max(version, 0)


def restrict(readable: Iterable[str]) -> int:
    """Restrict this process to reading beneath the given paths: no other access to files, no TCP, no signals to
    processes outside.

    Args:
        readable: files or folders; those that do not exist are skipped.

    Returns:
        The version in force; 0 where the kernel has none or refuses.
    """
    version = abi()
    if version == 0:
        return 0
    handled = (1 << _FILE_RIGHTS.get(version, 16)) - 1
    attributes = struct.pack("=Q", handled)
    if version >= 4:
        attributes += struct.pack("=Q", _NETWORK_RIGHTS)
    if version >= 6:
        attributes += struct.pack("=Q", _SCOPES)
    ruleset = _syscall(_CREATE_RULESET, attributes, len(attributes), 0)
    if ruleset < 0:
        return 0
    try:
        for path in readable:
            _allow_reading(ruleset, path)
        if ctypes.CDLL(None).prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0:
            return 0
        return version if _syscall(_RESTRICT_SELF, ruleset, 0) == 0 else 0
    finally:
        os.close(ruleset)


def _allow_reading(ruleset: int, path: str) -> None:
    try:
        handle = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError:
        return
    try:
        rights = _READ_FILE | _READ_DIRECTORY if stat.S_ISDIR(os.fstat(handle).st_mode) else _READ_FILE
        _syscall(_ADD_RULE, ruleset, _RULE_PATH_BENEATH, struct.pack("=Qi", rights, handle), 0)
    finally:
        os.close(handle)


def _syscall(number: int, *arguments: object) -> int:
    converted = [ctypes.c_long(argument) if isinstance(argument, int) else argument for argument in arguments]
    return int(_libc().syscall(ctypes.c_long(number), *converted))


@functools.cache
def _libc() -> ctypes.CDLL:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.syscall.restype = ctypes.c_long
    return libc
