"""Seccomp: denies the system calls that code which only computes does not need.

A deny list, assembled into classic BPF. Calls for another program, another process, a socket, or another process's
memory kill the process with SIGSYS, so that the breach can be reported. Calls that change files fail with EPERM, since
harmless libraries try some of them and go on. The filter cannot be removed, and holds for all threads. See
docs/decisions/0007-sandbox-kernel-interfaces.md for why no package is used.

Source of the numbers: Linux, arch/x86/entry/syscalls/syscall_64.tbl and include/uapi/asm-generic/unistd.h (aarch64);
of the filter format: Documentation/userspace-api/seccomp_filter.rst.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import struct

_KILL = 0x80000000
_ALLOW = 0x7FFF0000
_ERRNO = 0x00050000

_LOAD, _EQUAL, _AT_LEAST, _ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_NUMBER_OFFSET, _ARCHITECTURE_OFFSET, _ARGUMENTS_OFFSET = 0, 4, 16
_X32_BIT = 0x40000000

_CLONE_THREAD = 0x10000
# the last is __O_TMPFILE without O_DIRECTORY
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | 0o20000000

_PR_SET_NO_NEW_PRIVS, _PR_SET_SECCOMP, _FILTER_MODE = 38, 22, 2

_Numbers = dict[str, tuple[int | None, int | None]]
"""Name to the numbers on x86_64 and aarch64; None where the architecture has no such call."""

_KILLED: _Numbers = {
    "execve": (59, 221), "execveat": (322, 281), "fork": (57, None), "vfork": (58, None), "socket": (41, 198),
    "socketpair": (53, 199), "connect": (42, 203), "bind": (49, 200), "listen": (50, 201), "accept": (43, 202),
    "accept4": (288, 242), "sendto": (44, 206), "sendmsg": (46, 211), "sendmmsg": (307, 269), "ptrace": (101, 117),
    "process_vm_readv": (310, 270), "process_vm_writev": (311, 271), "pidfd_open": (434, 434),
    "pidfd_getfd": (438, 438), "pidfd_send_signal": (424, 424), "rt_sigqueueinfo": (129, 138),
    "rt_tgsigqueueinfo": (297, 240), "tkill": (200, 130), "mount": (165, 40), "umount2": (166, 39),
    "pivot_root": (155, 41), "chroot": (161, 51), "unshare": (272, 97), "setns": (308, 268), "bpf": (321, 280),
    "perf_event_open": (298, 241), "userfaultfd": (323, 282), "io_uring_setup": (425, 425),
    "io_uring_enter": (426, 426), "io_uring_register": (427, 427), "keyctl": (250, 219), "add_key": (248, 217),
    "request_key": (249, 218), "init_module": (175, 105), "finit_module": (313, 273), "delete_module": (176, 106),
    "kexec_load": (246, 104), "kexec_file_load": (320, 294), "reboot": (169, 142), "swapon": (167, 224),
    "open_by_handle_at": (304, 265), "memfd_create": (319, 279), "setuid": (105, 146), "setgid": (106, 144),
    "setsid": (112, 157), "setpgid": (109, 154), "personality": (135, 92), "quotactl": (179, 60), "acct": (163, 89),
    "kcmp": (312, 272), "process_madvise": (440, 440), "fsopen": (430, 430), "fsmount": (432, 432),
    "move_mount": (429, 429), "open_tree": (428, 428),
}  # fmt: skip

_REFUSED: _Numbers = {
    "creat": (85, None), "unlink": (87, None), "unlinkat": (263, 35), "rename": (82, None), "renameat": (264, 38),
    "renameat2": (316, 276), "mkdir": (83, None), "mkdirat": (258, 34), "rmdir": (84, None), "link": (86, None),
    "linkat": (265, 37), "symlink": (88, None), "symlinkat": (266, 36), "mknod": (133, None), "mknodat": (259, 33),
    "chmod": (90, None), "fchmod": (91, 52), "fchmodat": (268, 53), "fchmodat2": (452, 452), "chown": (92, None),
    "fchown": (93, 55), "lchown": (94, None), "fchownat": (260, 54), "truncate": (76, 45), "ftruncate": (77, 46),
    "fallocate": (285, 47), "utime": (132, None), "utimes": (235, None), "futimesat": (261, None),
    "utimensat": (280, 88), "setxattr": (188, 5), "lsetxattr": (189, 6), "fsetxattr": (190, 7),
    "removexattr": (197, 14), "lremovexattr": (198, 15), "fremovexattr": (199, 16), "shmget": (29, 194),
    "shmat": (30, 196), "msgget": (68, 186), "semget": (64, 190), "mq_open": (240, 180), "setpriority": (141, 140),
    "ioprio_set": (251, 30), "syslog": (103, 116), "migrate_pages": (256, 238), "move_pages": (279, 239),
    "sched_setscheduler": (144, 119), "sched_setparam": (142, 118), "sched_setattr": (314, 274),
}  # fmt: skip

# Their arguments are behind a pointer, which BPF cannot read. glibc and Python fall back to older calls on ENOSYS.
_ABSENT: _Numbers = {"clone3": (435, 435), "openat2": (437, 437)}

_SELF_ONLY: _Numbers = {"kill": (62, 129), "tgkill": (234, 131)}
_SELF_OR_ZERO: _Numbers = {"prlimit64": (302, 261), "sched_setaffinity": (203, 122)}
_OPENING: dict[str, tuple[int | None, int | None, int]] = {"open": (2, None, 1), "openat": (257, 56, 2)}
_CLONE: tuple[int, int] = (56, 220)

_ARCHITECTURES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7), "arm64": (1, 0xC00000B7)}


def install() -> bool:
    """Install the filter on this process; False where the architecture is unknown or the kernel refuses."""
    known = _ARCHITECTURES.get(platform.machine())
    if known is None:
        return False
    program = _program(*known, own=os.getpid())
    code = ctypes.create_string_buffer(program, len(program))
    header = ctypes.create_string_buffer(struct.pack("@HP", len(program) // 8, ctypes.addressof(code)))
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0:
        return False
    return bool(libc.prctl(_PR_SET_SECCOMP, _FILTER_MODE, ctypes.byref(header), 0, 0) == 0)


def _program(column: int, architecture: int, own: int) -> bytes:
    """Return the filter: instructions of eight bytes, whose jumps count the instructions to skip."""
    code = [
        _instruction(_LOAD, _ARCHITECTURE_OFFSET),
        _instruction(_EQUAL, architecture, 1, 0),
        _instruction(_RETURN, _KILL),
        _instruction(_LOAD, _NUMBER_OFFSET),
    ]
    if column == 0:
        code += [_instruction(_AT_LEAST, _X32_BIT, 0, 1), _instruction(_RETURN, _KILL)]
    for table, action in ((_KILLED, _KILL), (_REFUSED, _ERRNO | errno.EPERM), (_ABSENT, _ERRNO | errno.ENOSYS)):
        for numbers in table.values():
            code += _when(numbers[column], [_instruction(_RETURN, action)])
    for table, allowed in ((_SELF_ONLY, (own,)), (_SELF_OR_ZERO, (0, own))):
        for numbers in table.values():
            code += _when(numbers[column], [*_unless_equal(0, allowed), _instruction(_RETURN, _KILL)])
    for x86, arm, position in _OPENING.values():
        flags = [_argument(position), _instruction(_ANY_BIT, _WRITING, 1, 0), _instruction(_RETURN, _ALLOW)]
        code += _when((x86, arm)[column], [*flags, _instruction(_RETURN, _ERRNO | errno.EPERM)])
    thread = [_argument(0), _instruction(_ANY_BIT, _CLONE_THREAD, 0, 1), _instruction(_RETURN, _ALLOW)]
    code += _when(_CLONE[column], [*thread, _instruction(_RETURN, _KILL)])
    return b"".join([*code, _instruction(_RETURN, _ALLOW)])


def _instruction(operation: int, value: int, when_true: int = 0, when_false: int = 0) -> bytes:
    return struct.pack("=HBBI", operation, when_true, when_false, value)


def _argument(position: int) -> bytes:
    """Load the low half of an argument; all arguments that are checked are ints."""
    return _instruction(_LOAD, _ARGUMENTS_OFFSET + 8 * position)


def _when(number: int | None, body: list[bytes]) -> list[bytes]:
    """Run the body, which must end in a return, for one system call. The accumulator holds its number before and
    after.
    """
    return [] if number is None else [_instruction(_EQUAL, number, 0, len(body)), *body]


def _unless_equal(position: int, allowed: tuple[int, ...]) -> list[bytes]:
    """Return "allow" when the argument is one of the values; fall through otherwise."""
    code = [_argument(position)]
    for value in allowed:
        code += [_instruction(_EQUAL, value, 0, 1), _instruction(_RETURN, _ALLOW)]
    return code
