"""What a program can do inside the process of an answer: nothing outside of it, and nothing to another score."""

from __future__ import annotations

import os
import platform
import signal
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from weakened_sandbox import weakened

from swarmgame.sandbox import landlock, privileges
from swarmgame.sandbox.client import Sandbox

ATTEMPT = "hostile_code:attempt"
X86 = platform.machine() == "x86_64"
LARGE_FRAME = b'{"value": ' + b"9" * 400 + b"}"


@pytest.fixture(scope="module")
def box() -> Iterator[Sandbox]:
    sandbox = Sandbox(deadline=20.0, memory=128 * 2**20)
    yield sandbox
    sandbox.close()


def attempt(box: Sandbox, code: str) -> object:
    result = box.call_untrusted(ATTEMPT, [[code]])[0]
    return result.breach or result.value


def attempt_without(defences: list[str], code: str) -> object:
    box = weakened(defences)(deadline=20.0)
    try:
        return attempt(box, code)
    finally:
        box.close()


REFUSED_CALLS = {
    "sethostname": "170, b'pwned', 5",
    "setdomainname": "171, b'pwned', 5",
    "settimeofday": "164, 0, 0",
    "clock_settime": "227, 0, ctypes.create_string_buffer(16)",
    "adjtimex": "159, ctypes.create_string_buffer(208)",
    "setresuid": "117, 65534, 65534, 65534",
    "setresgid": "119, 65534, 65534, 65534",
    "setgroups": "116, 0, 0",
    "capset": "126, ctypes.create_string_buffer(8), ctypes.create_string_buffer(24)",
    "sync": "162",
    "fanotify_init": "300, 0, 0",
    "inotify_init": "253",
    "inotify_init1": "294, 0",
    "memfd_create": "319, b'x', 0",
    "memfd_secret": "447, 0",
    "timer_create": "222, 0, 0, ctypes.create_string_buffer(8)",
    "shmget": "29, 0, 4096, 0o1666",
    "mq_open": "240, b'x', 0o102, 0o600, 0",
    "unshare": "272, 0x10000000",
    "setns": "308, 0, 0",
    "mount": "165, b'a', b'b', b'c', 0, 0",
    "keyctl": "250, 0, 0",
    "bpf": "321, 0, 0, 0",
    "perf_event_open": "298, 0, 0, 0, 0, 0",
    "userfaultfd": "323, 0",
    "io_uring_setup": "425, 4, ctypes.create_string_buffer(200)",
    "socket": "41, 1, 1, 0",
    "socketpair": "53, 1, 1, 0, ctypes.create_string_buffer(8)",
    "ptrace": "101, 16, os.getppid(), 0, 0",
    "process_vm_readv": "310, os.getppid(), 0, 0, 0, 0, 0",
    "pidfd_open": "434, os.getppid(), 0",
    "fork": "57",
    "vfork": "58",
    "clone": "56, 17, 0, 0, 0, 0",
    "kill": "62, os.getppid(), 0",
    "kill all": "62, -1, 0",
    "tgkill": "234, os.getppid(), os.getppid(), 0",
    "seccomp": "317, 1, 8, 0",
    "make dumpable": "157, 4, 1, 0, 0, 0",
    "prlimit of the parent": "302, os.getppid(), 7, 0, ctypes.create_string_buffer(16)",
    "sched_setaffinity of the parent": "203, os.getppid(), 8, ctypes.create_string_buffer(b'\\1', 8)",
    "setpriority": "141, 0, 0, 5",
    "chroot": "161, b'/'",
    "x32": "0x40000000 + 39",
    "fcntl F_SETOWN": "72, os.pipe()[0], 8, os.getppid()",
    "fcntl F_SETOWN_EX": "72, os.pipe()[0], 15, ctypes.create_string_buffer(8)",
    "fcntl F_SETSIG": "72, os.pipe()[0], 10, 9",
    "fcntl F_SETFL O_ASYNC": "72, os.pipe()[0], 4, 0x2000",
    "fcntl F_NOTIFY": "72, os.open(os.path.dirname(os.__file__), os.O_RDONLY), 1026, 2",
    "fcntl F_SETPIPE_SZ": "72, os.pipe()[0], 1031, 1 << 20",
    "ioctl FIOASYNC": "16, os.pipe()[0], 0x5452, ctypes.create_string_buffer(b'\\1', 8)",
    "ioctl FIOSETOWN": "16, os.pipe()[0], 0x8901, ctypes.create_string_buffer(8)",
    "ioctl SIOCSPGRP": "16, os.pipe()[0], 0x8902, ctypes.create_string_buffer(8)",
    "ioctl TIOCSTI": "16, 0, 0x5412, b'x'",
}


@pytest.mark.skipif(not X86, reason="the numbers are those of x86_64")
@pytest.mark.parametrize("name", REFUSED_CALLS)
def test_the_system_call_is_refused(box: Sandbox, name: str) -> None:
    found = attempt(box, f"done = system_call({REFUSED_CALLS[name]})")
    # EPERM, EACCES, ENOSYS, or the end of the process
    assert found in (-1, -13, -38, "forbidden"), found


def test_an_answer_has_no_capability_and_cannot_get_one(box: Sandbox) -> None:
    code = (
        "a = ctypes.create_string_buffer((0x20080522).to_bytes(4, 'little') + bytes(4), 8)\n"
        "b = ctypes.create_string_buffer(24)\nctypes.CDLL(None).capget(a, b)\ndone = b.raw.hex()"
    )
    assert attempt(box, code) == "00" * 24
    if os.geteuid() == 0:
        assert attempt_without(["dropped privileges"], code) != "00" * 24


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_root_becomes_nobody_where_that_user_can_read_the_packages(tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    assert privileges.unprivileged_user(["/usr"]) == privileges.NOBODY
    assert privileges.unprivileged_user(["/usr", str(tmp_path)]) is None


@pytest.mark.parametrize("defences", [[], ["landlock", "seccomp", "dropped privileges"]])
def test_a_file_is_neither_made_nor_read_but_without_the_defences(tmp_path: Path, defences: list[str]) -> None:
    (tmp_path / "key").write_text("secret")
    code = f"open({str(tmp_path / 'marker')!r}, 'w').close()\ndone = open({str(tmp_path / 'key')!r}).read()"
    found = attempt_without(defences, code)
    assert (tmp_path / "marker").exists() == bool(defences)
    assert (found == "secret") == bool(defences)


def test_the_host_keeps_its_name(box: Sandbox) -> None:
    code = "done = (system_call(170, b'pwned', 5), os.uname().nodename)"
    before = os.uname().nodename
    if "UTS namespace" not in box.protections or not X86:
        pytest.skip("without a namespace the attack would rename this host")
    assert attempt(box, code) == [-38, before]
    assert attempt_without(["seccomp", "dropped privileges"], code) == [0, "pwned"]
    assert os.uname().nodename == before, "the namespace is a defence of its own"


@pytest.mark.skipif(not X86, reason="the flags are those of x86_64")
def test_a_pipe_sends_no_signal_to_another_process() -> None:
    # Its own victim: a pipe sends a second signal when the process of the answer ends, at a time that no test can know.
    with subprocess.Popen(["sleep", "60"]) as victim:
        code = (
            "import fcntl\na, b = os.pipe()\n"
            f"fcntl.fcntl(a, fcntl.F_SETOWN, {victim.pid})\nfcntl.fcntl(a, 10, {int(signal.SIGUSR1)})\n"
            "fcntl.fcntl(a, fcntl.F_SETFL, fcntl.fcntl(a, fcntl.F_GETFL) | 0x2000)\nos.write(b, b'x')\ndone = 'sent'"
        )
        try:
            assert attempt_without(["signal scope"], code) == "PermissionError: [Errno 1] Operation not permitted"
            assert victim.poll() is None
            assert attempt_without(["signal scope", "fcntl rule", "dropped privileges"], code) == "sent"
            assert victim.wait(60) == -signal.SIGUSR1
        finally:
            victim.kill()


POISON = 'exec("import json; json.dumps = lambda *_: \'{\\"result\\": {\\"value\\": 1.0}}\'")'


def forge(frame: bytes) -> str:
    sent = struct.pack("<I", len(frame)) + frame
    return (
        f"for descriptor in range(3, 64):\n  try: os.write(descriptor, {sent!r} * 64)\n  except OSError: pass\ndone = 0"
    )


def test_what_an_answer_does_to_the_interpreter_changes_no_other_score(box: Sandbox) -> None:
    calls = [["1 + 1"], [POISON], ["2 + 2"], ["3 + 3"]]
    scores = [result.value for result in box.call_untrusted("builtins:eval", calls)]
    assert (scores[0], scores[2:]) == (2, [4, 6])
    weak = weakened(["process per answer"])(deadline=20.0)
    try:
        assert [result.value for result in weak.call_untrusted("builtins:eval", calls)][2:] == [1.0, 1.0]
    finally:
        weak.close()


def test_what_an_answer_writes_to_descriptors_is_no_other_result(box: Sandbox) -> None:
    forged = b'{"result": {"value": 1.0}, "value": 1.0}'
    calls = [["done = 2"], [forge(forged)], ["done = 3"], ["done = 4"]]
    scores = [result.value for result in box.call_untrusted(ATTEMPT, calls)]
    assert (scores[0], scores[2:]) == (2, [3, 4])
    weak = weakened(["process per answer"])(deadline=20.0)
    try:
        assert [result.value for result in weak.call_untrusted(ATTEMPT, calls)][2:] == [1.0, 1.0]
    finally:
        weak.close()


@pytest.mark.parametrize(
    "frame",
    [LARGE_FRAME, b'{"value": ' + b"9" * 100_000 + b"}", b"[" * 200_000, b"null", b"{}", b'{"breach": []}', b"\xff"],
)
def test_a_hostile_result_is_no_exception_and_touches_no_other(box: Sandbox, frame: bytes) -> None:
    forged, after = box.call_untrusted(ATTEMPT, [[forge(frame)], ["done = 3"]])
    assert forged.breach or forged.value in (float("inf"), int("9" * 400))
    assert after.value == 3


def test_half_a_result_is_a_timeout(box: Sandbox) -> None:
    code = "os.write(3, b'\\xff\\0\\0\\0{')\ntime.sleep(60)"
    stuck, after = box.call_untrusted(ATTEMPT, [[code], ["done = 3"]], deadline=2.0)
    assert (stuck.breach, after.value) == ("timeout", 3)


def test_only_the_answers_own_pipe_is_open(box: Sandbox) -> None:
    code = "done = []\nfor i in range(256):\n  try: os.fstat(i); done.append(i)\n  except OSError: pass"
    assert attempt(box, code) == [0, 1, 2, 3]


def test_where_the_kernel_has_landlock_it_is_in_force(box: Sandbox) -> None:
    assert "seccomp" in box.protections
    assert landlock.abi() == 0 or f"landlock {landlock.abi()}" in box.protections
