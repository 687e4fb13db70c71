"""A call that is tried in a shared process is given up before it evaluates anything."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from swarmgame.sandbox.client import Sandbox
from swarmgame.sandbox.trial import Trial

TRIAL = Trial()
"""One for all tests: its hook cannot be removed."""
CARELESS, ENDLESS = "hostile_code:careless", "hostile_code:endless"


@pytest.fixture(scope="module")
def box() -> Iterator[Sandbox]:
    sandbox = Sandbox(deadline=20.0, memory=128 * 2**20)
    yield sandbox
    sandbox.close()


def test_answers_that_are_only_read_share_a_process_and_one_that_is_run_has_its_own(box: Sandbox) -> None:
    answers = ["one", "seen.append('poison')", "three", "seen.append('more')", "(1)", "six"]
    (first, _, _), *rest = found = [
        each.value for each in box.call_untrusted(CARELESS, [[a] for a in answers], trial=True)
    ]
    assert [worth for _, worth, _ in found] == [3, None, 5, None, 1, 3]
    assert [process == first for process, _, _ in rest] == [False, True, False, False, True]
    assert len({process for process, _, _ in found}) == 4
    assert [before for _, _, before in found] == [0] * 6  # nothing that was run is left


def test_without_a_process_of_its_own_a_program_changes_what_others_get(box: Sandbox) -> None:
    together = box.call_untrusted(CARELESS, [["seen.append('poison')"], ["two"]], together=True)
    assert together[1].value[2] == 1


def test_what_was_prepared_for_an_answer_is_there_for_each_that_gets_a_process(box: Sandbox) -> None:
    calls = [["one", text] for text in ("read", "eval", "eval", "read", "eval")] + [["two", "eval"]]
    found = box.call_untrusted("hostile_code:take", calls, before="hostile_code:prepare", shared=1, trial=True)
    assert [each.value for each in found] == ["one"] * 5 + ["two"]


def test_a_trial_that_does_not_end_costs_no_other_call(box: Sandbox) -> None:
    found = box.call_untrusted(ENDLESS, [["one"], ["for ever"], ["three"]], deadline=2.0, trial=True)
    assert [(each.value, each.breach) for each in found] == [(3, ""), (None, "timeout"), (5, "")]


def test_a_trial_without_memory_is_made_again_in_a_process_of_its_own(box: Sandbox) -> None:
    found = box.call_untrusted(ENDLESS, [["one"], ["much memory"], ["three"]], trial=True)
    assert [(each.value, each.breach) for each in found] == [(3, ""), (None, "memory"), (5, "")]


@pytest.mark.parametrize(
    "program",
    [
        "eval('1')",
        "exec('1')",
        "compile('1', '', 'eval')",
        "__import__('this')",
        "open('/dev/null')",
        "__import__('marshal').loads(b'N')",
        "__import__('pickle').loads(b'cos\\nsystem\\n.')",
        "(lambda: 0).__code__",
        "__import__('os').listdir('/')",
        "__import__('ctypes').CDLL(None)",
    ],
)
def test_every_way_to_run_code_ends_a_trial_even_where_errors_are_swallowed(program: str) -> None:
    code = compile(program, "", "eval")

    def swallowing() -> str:
        try:
            eval(code)  # noqa: S307
        except BaseException:  # noqa: BLE001
            return "swallowed"
        return "done"

    assert TRIAL.call(swallowing) is None
    assert TRIAL.call(lambda: "read") == "read"
    assert swallowing()  # between trials nothing is changed
