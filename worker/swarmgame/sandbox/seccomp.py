"""Seccomp: allows the system calls that code which only computes needs, and no other.

An allow list, assembled into classic BPF. Calls for another program, another process, a socket or more rights kill the
process with SIGSYS, so that the breach can be reported. Calls that change files fail with EPERM, since harmless
libraries try some of them and go on. All others fail with ENOSYS, as on a kernel without them. `install` restricts a
process that forks; `install_final` takes fork, clone and signals to other processes from its children. A filter cannot
be removed, and holds for all threads. See docs/decisions/0007-sandbox-kernel-interfaces.md for why no package is used.

Source of the filter format: Linux, Documentation/userspace-api/seccomp_filter.rst.
"""

from __future__ import annotations

import ctypes
import errno
import functools
import os
import platform
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from swarmgame.sandbox import system_calls as calls

_KILL = 0x80000000
_ALLOW = 0x7FFF0000
_ERRNO = 0x00050000
_EPERM, _ENOSYS = _ERRNO | errno.EPERM, _ERRNO | errno.ENOSYS

_LOAD, _EQUAL, _AT_LEAST, _ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_NUMBER_OFFSET, _ARCHITECTURE_OFFSET, _ARGUMENTS_OFFSET = 0, 4, 16
_X32_BIT = 0x40000000

_CLONE_THREAD = 0x10000
# the last is __O_TMPFILE without O_DIRECTORY
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | 0o20000000
_O_ASYNC = 0o20000
"""With it the kernel sends a signal to the descriptor's owner (F_SETOWN), which may be any process."""

_F_SETFL = 4
_FCNTL_COMMANDS = (0, 1, 2, 3, 1030)
"""F_DUPFD, F_GETFD, F_SETFD, F_GETFL, F_DUPFD_CLOEXEC; F_SETFL is checked for O_ASYNC."""
_IOCTL_COMMANDS = (0x5401, 0x5413, 0x541B, 0x5421, 0x5450, 0x5451)
"""TCGETS, TIOCGWINSZ, FIONREAD, FIONBIO, FIONCLEX, FIOCLEX: not FIOASYNC, FIOSETOWN or SIOCSPGRP."""
_PR_SET_NAME, _PR_GET_NAME, _PR_SET_VMA = 15, 16, 0x53564D41
_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE, _PR_SET_SECCOMP, _PR_SET_NO_NEW_PRIVS = 1, 4, 22, 38
_HARMLESS_OPTIONS = (_PR_SET_NAME, _PR_GET_NAME, _PR_SET_VMA)
_OPTIONS = (*_HARMLESS_OPTIONS, _PR_SET_PDEATHSIG, _PR_SET_DUMPABLE, _PR_SET_SECCOMP, _PR_SET_NO_NEW_PRIVS)
"""Options of prctl; all but the harmless ones restrict a child further, and are refused afterwards."""
_FILTER_MODE = 2

_ARCHITECTURES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7), "arm64": (1, 0xC00000B7)}


def install() -> bool:
    """Restrict this process and its children to the allow list, which has fork and signals to other processes.

    Returns:
        False where the architecture is unknown or the kernel refuses.
    """
    known = _ARCHITECTURES.get(platform.machine())
    return known is not None and _install(_allow_list(*known))


def install_final() -> bool:
    """Take fork, clone of processes, signals and further restrictions from this process, after `install`; returns as
    that.
    """
    known = _ARCHITECTURES.get(platform.machine())
    return known is not None and _install(_without_processes(*known))


def prepare_final() -> None:
    """Assemble what `install_final` installs, so that it costs each child of this process a system call."""
    known = _ARCHITECTURES.get(platform.machine())
    if known is not None:
        _without_processes(*known)


@dataclass(frozen=True, slots=True)
class _Filter:
    """A program in memory as the kernel takes it."""

    header: ctypes.Array[ctypes.c_char]
    code: ctypes.Array[ctypes.c_char]
    """Kept alive: the header has its address."""


def _assembled(instructions: Sequence[bytes]) -> _Filter:
    program = b"".join(instructions)
    code = ctypes.create_string_buffer(program, len(program))
    header = ctypes.create_string_buffer(struct.pack("@HP", len(program) // 8, ctypes.addressof(code)))
    return _Filter(header, code)


def _install(program: _Filter) -> bool:
    libc = _libc()
    if libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0:
        return False
    return bool(libc.prctl(_PR_SET_SECCOMP, _FILTER_MODE, program.header, 0, 0) == 0)


@functools.cache
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


@functools.cache
def _allow_list(column: int, architecture: int) -> _Filter:
    """Return the filter: instructions of eight bytes, whose jumps count the instructions to skip."""
    code = _head(column, architecture)
    for table in (calls.ALLOWED, calls.FORK, calls.CLONE, calls.SIGNAL, calls.OF_A_PROCESS):
        for numbers in table.values():
            code += _when(numbers[column], [_instruction(_RETURN, _ALLOW)])
    for x86, arm, position in calls.OPENING.values():
        flags = [_argument(position), _instruction(_ANY_BIT, _WRITING, 1, 0), _instruction(_RETURN, _ALLOW)]
        code += _when((x86, arm)[column], [*flags, _instruction(_RETURN, _EPERM)])
    status = [_argument(2), _instruction(_ANY_BIT, _O_ASYNC, 1, 0), _instruction(_RETURN, _ALLOW)]
    commands = [
        *_if_equal(1, _FCNTL_COMMANDS),
        _instruction(_EQUAL, _F_SETFL, 0, len(status)),
        *status,
        _instruction(_RETURN, _EPERM),
    ]
    code += _when(calls.FCNTL["fcntl"][column], commands)
    code += _when(calls.IOCTL["ioctl"][column], [*_if_equal(1, _IOCTL_COMMANDS), _instruction(_RETURN, _EPERM)])
    code += _when(calls.PRCTL["prctl"][column], [*_if_equal(0, _OPTIONS), _instruction(_RETURN, _EPERM)])
    for table, action in ((calls.KILLED, _KILL), (calls.REFUSED, _EPERM)):
        for numbers in table.values():
            code += _when(numbers[column], [_instruction(_RETURN, action)])
    # ENOSYS: glibc and Python fall back to an older call (clone3 and openat2, whose arguments BPF cannot read).
    return _assembled([*code, _instruction(_RETURN, _ENOSYS)])


@functools.cache
def _without_processes(column: int, architecture: int) -> _Filter:
    """Return the second filter. Of two filters the stricter answer counts."""
    code = _head(column, architecture)
    for numbers in (*calls.FORK.values(), calls.SIGNAL["kill"]):
        code += _when(numbers[column], [_instruction(_RETURN, _KILL)])
    # abort() sends itself a signal with tgkill; where that fails it crashes, which is as good.
    code += _when(calls.SIGNAL["tgkill"][column], [_instruction(_RETURN, _EPERM)])
    thread = [_argument(0), _instruction(_ANY_BIT, _CLONE_THREAD, 0, 1), _instruction(_RETURN, _ALLOW)]
    code += _when(calls.CLONE["clone"][column], [*thread, _instruction(_RETURN, _KILL)])
    for numbers in calls.OF_A_PROCESS.values():
        code += _when(numbers[column], [*_if_equal(0, (0,)), _instruction(_RETURN, _KILL)])
    harmless = [*_if_equal(0, _HARMLESS_OPTIONS), _instruction(_RETURN, _EPERM)]
    code += _when(calls.PRCTL["prctl"][column], harmless)
    return _assembled([*code, _instruction(_RETURN, _ALLOW)])


def _head(column: int, architecture: int) -> list[bytes]:
    """Return the instructions that refuse another architecture's calls, and load the number."""
    code = [
        _instruction(_LOAD, _ARCHITECTURE_OFFSET),
        _instruction(_EQUAL, architecture, 1, 0),
        _instruction(_RETURN, _KILL),
        _instruction(_LOAD, _NUMBER_OFFSET),
    ]
    if column == 0:
        code += [_instruction(_AT_LEAST, _X32_BIT, 0, 1), _instruction(_RETURN, _KILL)]
    return code


def _instruction(operation: int, value: int, when_true: int = 0, when_false: int = 0) -> bytes:
    return struct.pack("=HBBI", operation, when_true, when_false, value)


def _argument(position: int) -> bytes:
    """Load the low half of an argument; all arguments that are checked are ints, of which the kernel reads no more."""
    return _instruction(_LOAD, _ARGUMENTS_OFFSET + 8 * position)


def _when(number: int | None, body: list[bytes]) -> list[bytes]:
    """Run the body, which must end in a return, for one system call. The accumulator holds its number before and
    after.
    """
    return [] if number is None else [_instruction(_EQUAL, number, 0, len(body)), *body]


def _if_equal(position: int, allowed: Iterable[int]) -> list[bytes]:
    """Return "allow" when the argument is one of the values; fall through otherwise."""
    code = [_argument(position)]
    for value in allowed:
        code += [_instruction(_EQUAL, value, 0, 1), _instruction(_RETURN, _ALLOW)]
    return code
