"""Tools as an environment: the calls in a turn are made, and their results are what the policy reads next.

A turn without a call is the answer, and ends the episode, so that rewards score it as they score a rollout of one turn.
Everything runs in the sandbox, in the play of the episode. A call that cannot be made gives a text that begins with
`error:`; a tool that raises fails the episode, with the place in its code.
"""

from __future__ import annotations

import hashlib
from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import replace
from itertools import islice
from typing import Annotated, Any, ClassVar, cast

from pydantic import BaseModel, Field, model_validator

from swarmgame.config import Config
from swarmgame.environments.play import BadStep
from swarmgame.environments.tool_calls import Format, ToolCall, calls_in, example_of
from swarmgame.errors import InvalidManifest
from swarmgame.game.components import ComponentContext
from swarmgame.game.environment import Environment, Episode, Step, Tool
from swarmgame.game.explained import explained
from swarmgame.game.lookup import find_component, validate_config
from swarmgame.game.state import Question
from swarmgame.user_code import kind_of

GROUP = "swarmgame.tools"
"""Entry points of tools."""
_PATH = "spec.game.environment.with"

ToolName = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_-]{0,63}$")]


class CallsConfig(Config):
    """How the policy calls a tool, and what it reads."""

    calls: Format = "tags"
    """How a call is written. `tags`: `<calculator>2+3</calculator>`, for tools of one argument. `json`:
    `<tool_call>{"name": "calculator", "arguments": {"expression": "2+3"}}</tool_call>`, with the result in
    `<tool_response>`, as models are trained to write it.
    """
    instructions: bool = False
    """Whether the policy reads, behind the question, which tools there are and how they are called."""
    max_calls: Annotated[int, Field(ge=1, le=16)] = 4
    """Calls of one turn that are made; those beyond are answered with an error."""
    max_result: Annotated[int, Field(ge=16, le=3500)] = 2000
    """Characters of one result; a longer one loses its end."""


class ToolEntry(Config):
    """One of the tools."""

    use: str
    """Its name, or `package.module:Class`."""
    with_: Annotated[dict[str, Any], Field(alias="with")] = Field(default_factory=dict)
    """Its configuration."""
    name: ToolName | None = None
    """The name that the policy calls it by; the value of `use`, or the class in small letters, when not given."""

    @property
    def called(self) -> str:
        """The name in calls."""
        return self.name or self.use.rpartition(":")[2].lower()


class ToolboxConfig(CallsConfig):
    """The tools, and how they are called."""

    tools: Annotated[tuple[ToolEntry, ...], Field(min_length=1, max_length=16)]
    """The tools: `calculator`, `search`, or classes of your own (`swarmgame.Tool`)."""

    @model_validator(mode="after")
    def _names_differ(self) -> ToolboxConfig:
        names = [entry.called for entry in self.tools]
        if len(set(names)) < len(names):
            raise ValueError("two tools have one name; give one of them another with `name`")
        return self


class _UsingTools(Episode):
    def __init__(self, tools: Mapping[str, Tool], config: CallsConfig) -> None:
        self._tools, self._config = tools, config
        self._parameters = {name: tool.parameters for name, tool in tools.items()}

    def first(self) -> str:
        if not self._config.instructions:
            return ""
        lines = [
            f"{name}: {example_of(name, parameters, self._config.calls)}"
            for name, parameters in self._parameters.items()
        ]
        return "\n".join(["Tools, each with how it is called:", *lines, "A turn without a call is the answer."])

    def step(self, action: str) -> Step:
        most = self._config.max_calls
        calls = list(islice(calls_in(action, self._parameters, self._config.calls), most + 1))
        if not calls:
            return Step(done=True)
        results = [self._shown(self._result(call)) for call in calls[:most]]
        if len(calls) > most:
            results.append(self._shown(f"error: at most {most} calls a turn"))
        return Step("\n".join(results))

    def _result(self, call: ToolCall) -> str:
        if call.problem:
            return f"error: {call.problem}"
        result = self._tools[call.name].call(call.arguments)
        if not isinstance(result, str):
            raise BadStep(f"the tool {call.name} returned {kind_of(result)}; expected a text")
        return result[: self._config.max_result] or "no result"

    def _shown(self, result: str) -> str:
        return f"<tool_response>\n{result}\n</tool_response>" if self._config.calls == "json" else result


class ToolEnvironment(Environment):
    """Base of environments of tools: a subclass makes the tools."""

    Config: ClassVar[type[BaseModel]] = CallsConfig
    config: CallsConfig

    def __init__(self, config: CallsConfig, context: ComponentContext) -> None:
        super().__init__(config, context)
        self._tools = self.make_tools()
        if config.calls == "tags":
            for name, tool in self._tools.items():
                _check_tag(name, tool)

    @abstractmethod
    def make_tools(self) -> Mapping[str, Tool]:
        """Return the tools by name; called once, when configuration and context are set."""

    def start(self, question: Question) -> Episode:
        return _UsingTools(self._tools, self.config)

    def content_digest(self) -> str:
        digests = [tool.content_digest() for tool in self._tools.values()]
        return hashlib.blake2b("\n".join(digests).encode(), digest_size=16).hexdigest() if any(digests) else ""

    def close(self) -> None:
        for tool in self._tools.values():
            tool.close()


class Toolbox(ToolEnvironment):
    """Several tools, by the name in a call. A turn without a call is the answer, which `game.rewards` score."""

    Config = ToolboxConfig
    config: ToolboxConfig

    def make_tools(self) -> Mapping[str, Tool]:
        return {entry.called: self._tool(index, entry) for index, entry in enumerate(self.config.tools)}

    def _tool(self, index: int, entry: ToolEntry) -> Tool:
        path = f"{_PATH}.tools[{index}]"
        found = cast(type[Tool], find_component(entry.use, Tool, group=GROUP, path=f"{path}.use"))
        if not getattr(found, "parameters", None):
            raise InvalidManifest(f"{path}.use", entry.use, "a tool with `parameters`, one or more")
        config = validate_config(found, entry.with_, f"{path}.with")
        with explained(found, "its constructor"):
            return made_at(f"{path}.with", lambda: found(config, self.context))


def _check_tag(name: str, tool: Tool) -> None:
    """Raise InvalidManifest where a tag cannot hold the arguments of a tool."""
    if len(tool.parameters) > 1:
        names = ", ".join(tool.parameters)
        expected = f"json: {name} takes the arguments {names}, and a tag holds one"
        raise InvalidManifest(f"{_PATH}.calls", "tags", expected)


def made_at(path: str, make: Callable[[], Tool]) -> Tool:
    """Make a tool; the paths of its errors become those of the manifest.

    Args:
        path: of its `with` block.
    """
    try:
        return make()
    except InvalidManifest as error:
        problems = tuple(replace(each, path=f"{path}.{each.path}") for each in error.problems)
        raise InvalidManifest(problems=problems) from error
