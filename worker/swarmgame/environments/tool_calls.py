"""Tool calls in the text of a turn: `<calculator>2+3</calculator>`, or JSON as most chat templates write it.

Pure functions of untrusted text: they take time proportional to its length, and evaluate nothing. A call that cannot be
read is returned with what is wrong with it, so that the policy reads that instead of a result.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from swarmgame import bounded_json

Format = Literal["tags", "json"]

_OPEN, _CLOSE = "<tool_call>", "</tool_call>"
_LONGEST_NAME = 64
_SHOWN = 40
"""Characters of a name that a problem shows."""


@dataclass(frozen=True, slots=True)
class ToolCall:
    """One call.

    Args:
        name: of the tool; empty where it cannot be read.
        arguments: by name.
        problem: why it cannot be made; empty where it can.
    """

    name: str = ""
    arguments: Mapping[str, Any] = field(default_factory=dict)
    problem: str = ""


def calls_in(text: str, tools: Mapping[str, Mapping[str, str]], form: Format) -> Iterator[ToolCall]:
    """Yield the calls of a text, in order.

    Args:
        tools: the parameters of each tool, by its name.
    """
    yield from _json_calls(text, tools) if form == "json" else _tag_calls(text, tools)


def example_of(name: str, parameters: Mapping[str, str], form: Format) -> str:
    """Return how a tool is called."""
    if form == "json":
        return f"{_OPEN}{json.dumps({'name': name, 'arguments': dict(parameters)})}{_CLOSE}"
    return f"<{name}>{next(iter(parameters))}</{name}>"


def _tag_calls(text: str, tools: Mapping[str, Mapping[str, str]]) -> Iterator[ToolCall]:
    at = text.find("<")
    while at >= 0:
        end = text.find(">", at, at + _LONGEST_NAME + 2)
        name = text[at + 1 : end] if end > 0 else ""
        if name not in tools:
            at = text.find("<", at + 1)
            continue
        close = text.find(f"</{name}>", end)
        if close < 0:
            yield ToolCall(name, problem=f"<{name}> without </{name}>")
            return
        yield ToolCall(name, {next(iter(tools[name])): text[end + 1 : close]})
        at = text.find("<", close + len(name) + 3)


def _json_calls(text: str, tools: Mapping[str, Mapping[str, str]]) -> Iterator[ToolCall]:
    at = text.find(_OPEN)
    while at >= 0:
        close = text.find(_CLOSE, at)
        if close < 0:
            yield ToolCall(problem=f"{_OPEN} without {_CLOSE}")
            return
        yield _json_call(text[at + len(_OPEN) : close], tools)
        at = text.find(_OPEN, close + len(_CLOSE))


def _json_call(body: str, tools: Mapping[str, Mapping[str, str]]) -> ToolCall:
    try:
        found = bounded_json.loads(body)
    except ValueError:
        return ToolCall(problem="the call is no JSON")
    if not isinstance(found, dict) or not isinstance(found.get("name"), str):
        return ToolCall(problem='the call is no object with "name" and "arguments"')
    name, arguments = found["name"], found.get("arguments", {})
    if name not in tools:
        return ToolCall(name, problem=f"there is no tool {name[:_SHOWN]}; there are {', '.join(tools)}")
    if not isinstance(arguments, dict) or arguments.keys() != tools[name].keys():
        return ToolCall(name, problem=f"{name} takes the arguments {', '.join(tools[name])}")
    return ToolCall(name, arguments)
