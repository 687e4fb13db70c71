"""Privileges: namespaces, user, capabilities and resource limits that a process of the sandbox gives up.

Each function changes the calling process for good, and returns what is in force. A process of root becomes the user
`nobody` where that user can read the packages; of any other user it stays that user, in a namespace where it has no
privilege. Capabilities are dropped in both cases.

Source: Linux, capabilities(7), namespaces(7) and include/uapi/linux/capability.h.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import resource
import signal
import struct
from collections.abc import Iterable

_NEWUSER, _NEWNET, _NEWIPC, _NEWUTS = 0x10000000, 0x40000000, 0x08000000, 0x04000000
_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE, _PR_CAPBSET_DROP, _PR_CAP_AMBIENT = 1, 4, 24, 47
_CAP_AMBIENT_CLEAR_ALL = 4
_CAPABILITY_VERSION = 0x20080522
_CAPABILITIES = 64
_CAP_DAC_READ_SEARCH = 2
NOBODY = 65534


@functools.cache
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def unshare() -> list[str]:
    """Enter empty network, IPC and host-name namespaces, inside a new user namespace where this process has no
    privilege to make them otherwise. Return those in force.
    """
    wanted = ((_NEWNET | _NEWIPC | _NEWUTS, 0), (_NEWNET | _NEWIPC | _NEWUTS, _NEWUSER))
    if any(_libc().unshare(flags | user) == 0 for flags, user in wanted):
        return ["network namespace", "IPC namespace", "UTS namespace"]
    return []


def lower(limit: int, value: int) -> None:
    """Lower a resource limit, hard and soft; never raise it."""
    hard = resource.getrlimit(limit)[1]
    value = value if hard == resource.RLIM_INFINITY else min(value, hard)
    resource.setrlimit(limit, (value, value))


def die_with(parent: int) -> None:
    """End this process when its parent ends; at once where it has ended. Call it after a change of user, which resets
    it.
    """
    _libc().prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(98)


def forbid_tracing() -> None:
    """Keep other processes of this user from tracing this one and from reading its memory."""
    _libc().prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)


def unprivileged_user(folders: Iterable[str]) -> int | None:
    """Return the id of the user that evaluates answers; None where it is this process's own.

    A child tries it: only root can become another user, the folders may be readable by root alone, and without
    CAP_KILL this process could not end the other's processes.

    Args:
        folders: of the packages that this user must be able to read.
    """
    if os.geteuid() != 0:
        return None
    existing = [folder for folder in folders if os.path.isdir(folder)]
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        drop(NOBODY)
        readable = all(os.access(folder, os.R_OK | os.X_OK) for folder in existing)
        os.write(writer, b"y" if readable and os.geteuid() == NOBODY else b"n")
        signal.pause()
        os._exit(0)
    os.close(writer)
    usable = os.read(reader, 1) == b"y"
    os.close(reader)
    try:
        os.kill(child, signal.SIGKILL)
    except PermissionError:
        return None  # the child ends with this process
    os.waitpid(child, 0)
    return NOBODY if usable else None


def drop(user: int | None, *, keep_reading: bool = False) -> bool:
    """Give up every capability, and become another user.

    Args:
        user: None to stay this user.
        keep_reading: keep CAP_DAC_READ_SEARCH alone: packages of another user may be readable by root only.

    Returns:
        Whether no other capability is left.
    """
    libc = _libc()
    for capability in range(_CAPABILITIES):
        libc.prctl(_PR_CAPBSET_DROP, capability, 0, 0, 0)
    if user is not None:
        with contextlib.suppress(OSError):  # without CAP_SETUID it stays this user: `unprivileged_user` finds that out
            os.setgroups([])
            os.setresgid(user, user, user)
            os.setresuid(user, user, user)
    libc.prctl(_PR_CAP_AMBIENT, _CAP_AMBIENT_CLEAR_ALL, 0, 0, 0)
    kept = 1 << _CAP_DAC_READ_SEARCH if keep_reading else 0
    header = ctypes.create_string_buffer(struct.pack("=Ii", _CAPABILITY_VERSION, 0))
    libc.capset(header, ctypes.create_string_buffer(struct.pack("=6I", kept, kept, 0, 0, 0, 0)))
    return not capabilities() & ~kept


def capabilities() -> int:
    """Return the effective and permitted capabilities of this process as bits; all of them where that is unknown."""
    header = ctypes.create_string_buffer(struct.pack("=Ii", _CAPABILITY_VERSION, 0))
    found = ctypes.create_string_buffer(24)
    if _libc().capget(header, found) != 0:
        return (1 << _CAPABILITIES) - 1
    effective, permitted, _, high_effective, high_permitted, _ = struct.unpack("=6I", found.raw)
    return int(effective | permitted | (high_effective | high_permitted) << 32)
