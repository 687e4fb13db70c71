"""JSON of others: what is too deep is refused before it is parsed, in time proportional to the text."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarmgame import bounded_json

values = st.recursive(
    st.none() | st.integers() | st.text('ab"\\[]{}é'),
    lambda parts: st.lists(parts, max_size=4) | st.dictionaries(st.text('"\\[{'), parts, max_size=4),
    max_leaves=40,
)


def depth_of(value: Any) -> int:
    if isinstance(value, dict | list):
        parts = value.values() if isinstance(value, dict) else value
        return 1 + max(map(depth_of, parts), default=0)
    return 0


@given(values, st.integers(0, 4))
def test_what_is_refused_is_exactly_what_is_deeper(value: Any, deepest: int) -> None:
    text = json.dumps(value, ensure_ascii=False)
    if depth_of(value) > deepest:
        with pytest.raises(ValueError, match=f"nested more than {deepest} deep"):
            bounded_json.loads(text, deepest=deepest)
    else:
        assert bounded_json.loads(text.encode(), deepest=deepest) == value


@pytest.mark.parametrize(
    "text",
    ["[" * 1_000_000, '{"a":' * 1_000_000, '["', '["' + '\\"' * 1_000_000 + "[" * 200, b"\xff", "[" * 9, "]" * 1000],
    ids=lambda text: repr(text[:4]),
)
def test_hostile_texts_are_refused(text: str | bytes) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        bounded_json.loads(text)


def test_an_encoding_that_would_hide_brackets_is_refused() -> None:
    with pytest.raises(ValueError, match=r"\w"):
        bounded_json.loads(('["\u2222"]' + "[" * 300).encode("utf-16"))


_WITH_A_RAISED_LIMIT = """
import sys
sys.setrecursionlimit(100_000)  # as a library of curves does
from swarmgame.environments.tool_calls import calls_in
from swarmgame.sandbox.frames import parsed
deep = "[" * 100_000
(call,) = calls_in(f"<tool_call>{deep}</tool_call>", {"c": {"e": ""}}, "json")
print(call.problem, "|", parsed(deep.encode())["message"], "|", parsed(('{"a":' * 100_000).encode())["breach"])
"""


def test_a_hostile_frame_is_answered_where_a_library_has_raised_the_recursion_limit() -> None:
    done = subprocess.run([sys.executable, "-c", _WITH_A_RAISED_LIMIT], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.strip()) == (
        0,
        "the call is no JSON | a result that cannot be read | killed",
    ), done.stderr
