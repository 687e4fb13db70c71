"""Tool calls in untrusted text: what is read as a call, and what is answered where none can be made."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarmgame.environments.tool_calls import ToolCall, calls_in, example_of

TOOLS = {"c": {"expression": "a sum"}, "find": {"query": "words", "count": "how many"}}


@pytest.mark.parametrize(
    ("text", "calls"),
    [
        ("12", []),
        ("<c>1+1</c>", [ToolCall("c", {"expression": "1+1"})]),
        ("so <c>1</c>, <find>a b</find>.", [ToolCall("c", {"expression": "1"}), ToolCall("find", {"query": "a b"})]),
        ("<<c>3</c>", [ToolCall("c", {"expression": "3"})]),
        ("<c></c>", [ToolCall("c", {"expression": ""})]),
        ("<c><find>x</find></c>", [ToolCall("c", {"expression": "<find>x</find>"})]),
        ("<c>1</c><c>2", [ToolCall("c", {"expression": "1"}), ToolCall("c", problem="<c> without </c>")]),
        ("<b>1</b> 1 < 2 <c", []),
    ],
)
def test_calls_in_tags_are_those_of_known_tools(text: str, calls: list[ToolCall]) -> None:
    assert list(calls_in(text, TOOLS, "tags")) == calls


@pytest.mark.parametrize(
    ("body", "problem"),
    [
        ("{", "the call is no JSON"),
        ("[" * 100_000, "the call is no JSON"),
        ("9" * 10_000, "the call is no JSON"),
        ("[1]", 'the call is no object with "name" and "arguments"'),
        ('{"name": 3}', 'the call is no object with "name" and "arguments"'),
        ('{"name": "d"}', "there is no tool d; there are c, find"),
        ('{"name": "find", "arguments": {"query": "a"}}', "find takes the arguments query, count"),
        ('{"name": "c", "arguments": "1"}', "c takes the arguments expression"),
        ('{"name": "c"}', "c takes the arguments expression"),
    ],
)
def test_json_that_is_no_call_of_a_tool_is_answered_with_what_is_wrong(body: str, problem: str) -> None:
    (call,) = calls_in(f"I call <tool_call>{body}</tool_call>", TOOLS, "json")
    assert call.problem == problem


def test_json_calls_have_any_values_and_must_end() -> None:
    text = '<tool_call>\n{"name": "c", "arguments": {"expression": [1, null]}}\n</tool_call> <tool_call>{'
    assert list(calls_in(text, TOOLS, "json")) == [
        ToolCall("c", {"expression": [1, None]}),
        ToolCall(problem="<tool_call> without </tool_call>"),
    ]


@pytest.mark.parametrize("form", ["tags", "json"])
def test_the_example_of_a_call_is_a_call(form: str) -> None:
    (call,) = calls_in(example_of("c", TOOLS["c"], form), TOOLS, form)  # type: ignore[arg-type]
    assert (call.name, list(call.arguments), call.problem) == ("c", ["expression"], "")


@given(st.lists(st.sampled_from(["<", ">", "/", "c", "<c>", "</c>", "<tool_call>", "</tool_call>", "{", "1"])))
def test_any_text_is_read_and_no_call_overlaps_another(parts: list[str]) -> None:
    text = "".join(parts)
    for form in ("tags", "json"):
        calls = list(calls_in(text, TOOLS, form))  # type: ignore[arg-type]
        assert sum(len(str(value)) for call in calls for value in call.arguments.values()) <= len(text)


@pytest.mark.parametrize("part", ["<", "<c", "<c>", "<c></c", "<tool_call>", "<x>", "</c>"])
def test_long_texts_take_time_in_proportion(part: str) -> None:
    """A quadratic search would take hours, and so would not end in the time of a test."""
    text = part * (2**20 // len(part))
    for form in ("tags", "json"):
        for call in calls_in(text + ">", TOOLS, form):  # type: ignore[arg-type]
            assert call.problem or call.name
