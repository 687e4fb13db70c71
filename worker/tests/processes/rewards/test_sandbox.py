"""The sandbox: calls that break a limit affect no other call."""

from __future__ import annotations

import os
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from swarmgame.sandbox import landlock
from swarmgame.sandbox.client import CallFailed, Sandbox, SharedSandbox

EVAL = "builtins:eval"  # the most obliging function: whatever is sent, is run
ENDLESS_SECONDS = 0.5
"""Deadline of calls that never end. All others have one that a busy machine does not reach."""


@pytest.fixture(scope="module")
def box() -> Iterator[Sandbox]:
    sandbox = Sandbox(deadline=20.0, memory=128 * 2**20)
    yield sandbox
    sandbox.close()


def outcome_of(box: Sandbox, expression: str, deadline: float | None = None) -> str:
    outcome = box.call_untrusted(EVAL, [[expression]], deadline=deadline)[0]
    return outcome.breach or repr(outcome.value)


def test_the_restrictions_are_listed(box: Sandbox) -> None:
    assert "resource limits" in box.protections
    assert (f"landlock {landlock.abi()}" in box.protections) == (landlock.abi() > 0)


def test_calls_are_answered_in_order_and_an_exception_is_an_outcome(box: Sandbox) -> None:
    outcomes = box.call_untrusted(EVAL, [["1 + 1"], ["1 / 0"], ["'é' * 2"], ["unknown"], ["[1, None, {'a': 2.5}]"]])
    assert [outcome.value for outcome in outcomes] == [2, None, "éé", None, [1, None, {"a": 2.5}]]
    assert [outcome.breach for outcome in outcomes] == ["", "exception", "", "exception", ""]
    assert outcomes[1].message == "ZeroDivisionError: division by zero"


@pytest.mark.parametrize(
    "program",
    [
        "open({path!r}, 'w').write('x')",
        "__import__('os').open({path!r}, 0o101)",
        "__import__('os').mkdir({path!r})",
        "__import__('os').symlink('/etc/passwd', {path!r})",
        "__import__('os').system('touch {path}')",
        "__import__('subprocess').run(['touch', {path!r}])",
        "__import__('os').execv('/bin/sh', ['sh', '-c', 'touch {path}'])",
        "__import__('ctypes').CDLL(None).system(b'touch {path}')",
        "__import__('sqlite3').connect({path!r}).execute('create table t (x)')",
    ],
)
def test_no_program_leaves_a_file(box: Sandbox, tmp_path: Path, program: str) -> None:
    target = tmp_path / "breach"
    assert outcome_of(box, program.format(path=str(target))) in ("exception", "forbidden", "killed")
    assert list(tmp_path.iterdir()) == []
    assert outcome_of(box, "2 + 2") == "4"


@pytest.mark.parametrize(
    ("program", "breaches"),
    [
        ("__import__('socket').socket()", {"forbidden"}),
        ("__import__('socket').create_connection(('127.0.0.1', 9))", {"forbidden"}),
        ("__import__('os').fork()", {"forbidden"}),
        ("[__import__('os').fork() for _ in iter(int, 1)]", {"forbidden"}),
        ("__import__('os').kill(__import__('os').getppid(), 9)", {"forbidden"}),
        ("__import__('os').kill(-1, 9)", {"forbidden"}),
        ("__import__('os').kill(__import__('os').getpid(), 9)", {"forbidden"}),
        ("__import__('ctypes').CDLL(None).ptrace(16, __import__('os').getppid(), 0, 0)", {"forbidden"}),
        ("__import__('os').setsid()", {"forbidden"}),
        ("__import__('os').chmod('/tmp', 0o777)", {"exception"}),
        ("__import__('os').listdir('/')", {"exception"}),
        ("open('/etc/passwd').read()", {"exception"}),
        ("open('/proc/self/environ').read()", {"exception"}),
        ("__import__('os')._exit(0)", {"ended"}),
        ("__import__('sys').exit(3)", {"exception"}),
        ("'x' * 10**12", {"memory"}),
        ("[bytearray(2**20) for _ in iter(int, 1)]", {"memory"}),
        ("__import__('ctypes').string_at(0)", {"memory"}),
        ("9 ** 9 ** 9 ** 9", {"timeout"}),
        ("[0 for _ in iter(int, 1)] and __import__('signal').alarm(0)", {"memory", "timeout"}),
        ("__import__('time').sleep(60)", {"timeout"}),
        ("object()", {"exception"}),
        ("(lambda f: f(f))(lambda f: f(f))", {"exception"}),
        ("'x' * 2**23", {"killed", "memory"}),
    ],
)
def test_a_program_that_breaks_a_limit_is_named_and_the_next_call_is_answered(
    box: Sandbox, program: str, breaches: set[str]
) -> None:
    assert outcome_of(box, program, ENDLESS_SECONDS if "timeout" in breaches else None) in breaches
    assert outcome_of(box, "2 + 2") == "4"


def test_nothing_of_our_environment_is_inside(box: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET", "x")
    fresh = Sandbox(deadline=20.0)
    try:
        names = fresh.call_untrusted(EVAL, [["sorted(__import__('os').environ)"]])[0].value
    finally:
        fresh.close()
    assert "SECRET" not in names
    assert "HOME" not in names
    assert fresh.counters() == {}


def test_matplotlib_is_imported_where_there_is_no_home_to_write_in() -> None:
    fresh = Sandbox(deadline=60.0)
    try:
        assert (
            fresh.call_untrusted(EVAL, [["__import__('matplotlib').get_configdir()"]])[0].value == tempfile.gettempdir()
        )
    finally:
        fresh.close()


def test_what_one_batch_does_to_the_interpreter_is_gone_in_the_next(box: Sandbox) -> None:
    poison = "setattr(__import__('json'), 'dumps', lambda *_: '{\"value\": 1}')"
    box.call_untrusted(EVAL, [[poison], ["2 + 2"]])
    assert outcome_of(box, "2 + 2") == "4"


def test_after_three_breaches_the_rest_of_a_batch_is_not_run(box: Sandbox) -> None:
    outcomes = box.call_untrusted(EVAL, [["1"], *[["__import__('os').fork()"]] * 3, ["2"], ["3"]])
    assert [outcome.breach for outcome in outcomes] == ["", "forbidden", "forbidden", "forbidden", "not run", "not run"]
    assert [outcome.value for outcome in outcomes[:1]] == [1]


def test_an_answer_between_breaches_is_still_scored(box: Sandbox) -> None:
    outcomes = box.call_untrusted(EVAL, [["__import__('os').fork()"], ["2"], ["__import__('os')._exit(1)"], ["3"]])
    assert [(outcome.breach, outcome.value) for outcome in outcomes] == [
        ("forbidden", None),
        ("", 2),
        ("ended", None),
        ("", 3),
    ]


def test_breaches_are_counted_by_kind() -> None:
    fresh = Sandbox(deadline=20.0)
    try:
        fresh.call_untrusted(EVAL, [["1 / 0"], ["__import__('os').fork()"], ["1"]])
        assert fresh.counters() == {"sandbox_exception": 1, "sandbox_forbidden": 1}
    finally:
        fresh.close()


def test_calls_that_no_request_holds_are_a_breach_of_theirs_and_start_nothing() -> None:
    """12 MiB of a control character are 72 MiB of JSON."""
    sandbox = Sandbox()
    outcomes = sandbox.call_untrusted(EVAL, [["\x01" * 12 * 2**20], ["1 + 1"]])
    assert [outcome.breach for outcome in outcomes] == ["memory", "memory"]
    assert outcomes[0].message.endswith("the sandbox takes 67108864")
    assert sandbox.counters() == {"sandbox_memory": 2}


def test_a_sandbox_that_is_killed_starts_again_with_all_that_was_prepared(box: Sandbox) -> None:
    box.prepare("swarmgame.rewards.function:check", "json:loads")
    before = box.process_id
    os.kill(before, signal.SIGKILL)
    assert outcome_of(box, "2 + 2") == "4"
    assert box.process_id != before


def test_a_function_that_is_not_there_is_our_fault_and_raises(box: Sandbox) -> None:
    with pytest.raises(CallFailed, match="no_such_module"):
        box.call_untrusted("no_such_module:function", [[]])
    with pytest.raises(CallFailed, match="no_such_function"):
        box.call_untrusted("json:no_such_function", [[]])
    assert outcome_of(box, "2 + 2") == "4"


def test_the_hash_seed_is_fixed(box: Sandbox) -> None:
    other = Sandbox(deadline=20.0)
    try:
        assert outcome_of(box, "hash('peer')") == outcome_of(other, "hash('peer')")
    finally:
        other.close()


def test_the_shared_sandbox_ends_with_its_last_holder() -> None:
    one, other = SharedSandbox.hold(), SharedSandbox.hold()
    try:
        assert one is other
        process = one.process_id
    finally:
        SharedSandbox.release()
        SharedSandbox.release()
    if SharedSandbox._holders == 0:
        with pytest.raises(ProcessLookupError):
            os.kill(process, 0)


def test_every_answer_has_a_process_of_its_own(box: Sandbox) -> None:
    outcomes = box.call_untrusted("os:getpid", [[] for _ in range(64)])
    processes = {outcome.value for outcome in outcomes}
    assert len(processes) == 64
    assert not processes & {os.getpid(), box.process_id}


def test_calls_together_share_a_process(box: Sandbox) -> None:
    outcomes = box.call_untrusted("os:getpid", [[] for _ in range(8)], together=True)
    assert len({outcome.value for outcome in outcomes}) == 1


def test_where_the_kernel_has_no_landlock_nothing_is_claimed_and_nothing_breaks(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(landlock, "abi", lambda: 0)
    assert landlock.restrict([]) == 0
    (tmp_path / "still").write_text("writable")


@pytest.mark.parametrize("trial", [False, True])
def test_results_that_one_answer_cannot_hold_are_failed_calls_of_their_own(box: Sandbox, trial: bool) -> None:
    """An answer has 64 MiB: sixteen results of 4,000,000 characters fit, and short ones behind them."""
    process, restarts = box.process_id, box.counters().get("sandbox_restarts", 0)
    calls = [["a", 4_000_000]] * 18 + [["b", 3]]
    results = box.call_untrusted("operator:mul", calls, trial=trial)
    assert [len(result.value) for result in results[:16]] == [4_000_000] * 16
    assert [result.breach for result in results] == [""] * 16 + ["no room"] * 2 + [""]
    assert results[16].message == "its result is one too many: those of a request may have 64 MiB together"
    assert results[18].value == "bbb"
    assert (box.process_id, box.counters().get("sandbox_restarts", 0)) == (process, restarts)


@pytest.mark.parametrize("together", [False, True])
@pytest.mark.parametrize("trial", [False, True])
def test_a_result_that_is_too_long_fails_its_own_call_alone(box: Sandbox, trial: bool, together: bool) -> None:
    calls = [["a", 3], ["a", 5_000_000], ["b", 3], ["c", 3]]
    results = box.call_untrusted("operator:mul", calls, trial=trial, together=together)
    assert [result.value for result in results] == ["aaa", None, "bbb", "ccc"]
    assert (results[1].breach, results[1].message) == ("killed", "a result of more than 4194304 bytes")


def test_a_result_that_grows_when_it_is_sent_on_fails_its_own_call_alone(box: Sandbox) -> None:
    """A process that evaluates an answer may write its frame itself: 2 MB in UTF-8 are 6 MB as the others send it."""
    body = "b'{\"value\": \"' + 'é'.encode() * 1_000_000 + b'\"}'"
    program = f"[__import__('os').write(3, len(b).to_bytes(4, 'little') + b) for b in [{body}]]"
    results = box.call_untrusted(EVAL, [["1"], [program], ["2"], ["3"]])
    assert [result.value for result in results] == [1, None, 2, 3]
    assert results[1].message == "a result of more than 4194304 bytes"


def test_a_trusted_call_whose_value_no_answer_holds_fails_and_leaves_the_process(box: Sandbox) -> None:
    process = box.process_id
    with pytest.raises(CallFailed, match="a value of 70000013 bytes; an answer has at most 67108864"):
        box.call_trusted("operator:mul", "a", 70_000_000)
    assert box.process_id == process
