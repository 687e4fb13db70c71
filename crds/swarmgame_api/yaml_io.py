"""YAML text to plain data and back, with the caps that a stranger's file needs.

A file is read as kubectl would read it: `6e-4` is a number, `12:30` and `2026-01-31` are texts. Not here: what the data
means. Invariant: what comes out is JSON (mappings with text keys, lists, texts, finite numbers, booleans, null), a tree
of bounded size and depth, and no input raises anything but InvalidManifest.
"""

from __future__ import annotations

import math
import re
from collections.abc import Hashable, Sequence
from typing import Any, ClassVar

import yaml
from pydantic import JsonValue

from swarmgame_api.errors import InvalidManifest, Problem, Unquoted

MAX_BYTES = 1 << 20
MAX_DEPTH = 64
MAX_NODES = 20_000
MAX_ALIASES = 1_000
MAX_MERGED = 2_000

_CORE = "tag:yaml.org,2002:"
_IMPLICIT: dict[str, tuple[str, str]] = {
    "bool": (r"^(?:yes|Yes|YES|no|No|NO|true|True|TRUE|false|False|FALSE|on|On|ON|off|Off|OFF)$", "yYnNtTfFoO"),
    "int": (r"^[-+]?(?:0b[01]+|0o[0-7]+|0x[0-9a-fA-F]+|0|[1-9][0-9]*)$", "-+0123456789"),
    "float": (
        r"^(?:[-+]?(?:[0-9]+\.[0-9]*|\.[0-9]+|[0-9]+)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$",
        "-+0123456789.",
    ),
    "null": (r"^(?:~|null|Null|NULL|)$", "~nN\0"),
    "merge": (r"^<<$", "<"),
}


class _Loader(yaml.SafeLoader):
    """A SafeLoader of JSON's types alone, which refuses duplicate keys and bounds what aliases and merge keys may grow
    to.
    """

    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012 — as PyYAML declares it
    yaml_constructors: ClassVar[dict[Any, Any]] = {}

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.alias_count = 0
        self.node_count = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        self.node_count += 1
        if self.node_count > 2 * MAX_NODES:  # keys are nodes too
            raise yaml.constructor.ConstructorError(None, None, f"more than {MAX_NODES:,} values")
        if self.check_event(yaml.AliasEvent):
            self.alias_count += 1
            if self.alias_count > MAX_ALIASES:
                raise yaml.constructor.ConstructorError(None, None, f"more than {MAX_ALIASES:,} aliases")
        return super().compose_node(parent, index)

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if key.value in seen:
                    raise yaml.constructor.ConstructorError(
                        None, None, f"the key {key.value!r} stands here twice", key.start_mark
                    )
                seen.add(key.value)
        return node

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        kind = {_CORE + "seq": yaml.SequenceNode, _CORE + "map": yaml.MappingNode}.get(node.tag, yaml.ScalarNode)
        if node.tag in self.yaml_constructors and not isinstance(node, kind):
            raise yaml.constructor.ConstructorError(
                None, None, f"the tag {node.tag!r} does not fit what follows it", node.start_mark
            )
        return super().construct_object(node, deep)

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        super().flatten_mapping(node)
        if len(node.value) > MAX_MERGED:
            raise yaml.constructor.ConstructorError(
                None, None, f"a mapping of more than {MAX_MERGED:,} keys", node.start_mark
            )

    def construct_number(self, node: yaml.ScalarNode) -> int | float | None:
        text = node.value
        try:
            if node.tag == _CORE + "float":
                return float(re.sub(r"(?i)\.(inf|nan)$", r"\1", text))
            digits = text.lstrip("+-").lower()
            base = {"0b": 2, "0o": 8, "0x": 16}.get(digits[:2], 10)
            return int(text, base)
        except ValueError as error:
            raise yaml.constructor.ConstructorError(
                None, None, f"{text[:50]!r} is not a number", node.start_mark
            ) from error

    def construct_truth(self, node: yaml.ScalarNode) -> bool:
        return node.value.lower() in {"yes", "true", "on"}

    def construct_hash(self, node: yaml.MappingNode) -> Any:
        data: dict[Hashable, Any] = {}
        yield data
        self.flatten_mapping(node)
        data.update(self.construct_mapping(node))


for _kind, (_pattern, _first) in _IMPLICIT.items():
    _Loader.add_implicit_resolver(
        _CORE + _kind, re.compile(_pattern), [letter if letter != "\0" else "" for letter in _first]
    )
_Loader.yaml_constructors.update(
    {
        _CORE + "null": lambda loader, node: None,
        _CORE + "bool": _Loader.construct_truth,
        _CORE + "int": _Loader.construct_number,
        _CORE + "float": _Loader.construct_number,
        _CORE + "str": _Loader.construct_yaml_str,
        _CORE + "seq": _Loader.construct_yaml_seq,
        _CORE + "map": _Loader.construct_hash,
        None: _Loader.construct_undefined,
    }
)


class _Dumper(yaml.SafeDumper):
    """A SafeDumper that puts quotes around every text that this or another reader would take for something else."""

    def ignore_aliases(self, data: Any) -> bool:
        return True

    def represent_text(self, data: str) -> yaml.ScalarNode:
        # PyYAML writes the rarer line breaks raw, and reads them back as blanks; in double quotes it escapes them.
        style = '"' if any(letter in data for letter in "\x85\u2028\u2029") else None
        return self.represent_scalar(_CORE + "str", data, style)

    def increase_indent(self, flow: bool = False, indentless: bool = False) -> None:
        super().increase_indent(flow, False)


_Dumper.add_representer(str, _Dumper.represent_text)
for _kind, (_pattern, _first) in _IMPLICIT.items():
    _Dumper.add_implicit_resolver(
        _CORE + _kind, re.compile(_pattern), [letter if letter != "\0" else "" for letter in _first]
    )


def load_documents(text: str) -> list[JsonValue]:
    """The documents of a YAML text that hold anything.

    Raises:
        InvalidManifest: it is not YAML, or not JSON's kind of YAML, or too large; with the line where that is known.
    """
    if len(text) > MAX_BYTES:
        raise InvalidManifest("", Unquoted(f"{len(text):,} characters long"), f"at most {MAX_BYTES:,}")
    try:
        _refuse_deep(text)
        documents = list(yaml.load_all(text, Loader=_Loader))
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f" at line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise InvalidManifest(
            "", Unquoted(f"not valid YAML{where}"), f"YAML that parses; {error.problem or error.context}"
        ) from error
    except yaml.YAMLError as error:
        raise InvalidManifest(
            "", Unquoted("not valid YAML"), f"YAML that parses; {str(error).splitlines()[0]}"
        ) from error
    return [tree for tree in (to_json(document) for document in documents) if tree is not None]


def _refuse_deep(text: str) -> None:
    """Counts levels in the stream of events, which takes no recursion, before anything is built."""
    depth = 0
    for event in yaml.parse(text, Loader=_Loader):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > MAX_DEPTH:
            raise InvalidManifest("", Unquoted("nested too deeply"), f"at most {MAX_DEPTH} levels")


def load_value(text: str) -> JsonValue:
    """One value, as YAML would read it; nothing is null."""
    documents = load_documents(text)
    if len(documents) > 1:
        raise InvalidManifest("", text, "one value")
    return documents[0] if documents else None


def to_json(data: object) -> JsonValue:
    """A copy of the data that is JSON, a tree, and of bounded size.

    Raises:
        InvalidManifest: with every value that JSON cannot hold, or that the whole is too large or deep.
    """
    problems: list[Problem] = []
    left = MAX_NODES

    def walk(value: object, path: Steps, depth: int) -> JsonValue:
        nonlocal left
        left -= 1
        if left < 0:
            raise InvalidManifest("", Unquoted("too large"), f"at most {MAX_NODES:,} values, with aliases written out")
        if depth > MAX_DEPTH:
            raise InvalidManifest("", Unquoted("nested too deeply"), f"at most {MAX_DEPTH} levels")
        match value:
            case None | bool():
                return value
            case int():
                if not -(2**63) <= value < 2**63:
                    problems.append(
                        Problem(format_path(path), Unquoted("a very large integer"), "an integer of at most 64 bits")
                    )
                    return None
                return value
            case float():
                if not math.isfinite(value):
                    problems.append(Problem(format_path(path), Unquoted(str(value)), "a finite number"))
                return value
            case str():
                return text(value, path)
            case dict():
                return {key(name, path): walk(child, (*path, str(name)), depth + 1) for name, child in value.items()}
            case list() | tuple():
                return [walk(child, (*path, index), depth + 1) for index, child in enumerate(value)]
        problems.append(
            Problem(
                format_path(path), Unquoted(f"a {type(value).__name__}"), "a text, number, boolean, list or mapping"
            )
        )
        return None

    def text(value: str, path: Steps) -> str:
        if not value.isascii() and any("\ud800" <= letter <= "\udfff" for letter in value):
            problems.append(Problem(format_path(path), Unquoted("not Unicode text"), "a text without lone surrogates"))
        return value

    def key(name: object, path: Steps) -> str:
        if isinstance(name, str):
            return text(name, path)
        shown = Unquoted(f"under the key {str(name)[:50]}, which YAML reads as a {type(name).__name__}")
        problems.append(Problem(format_path(path), shown, "texts as keys; put quotes around it"))
        return str(name)[:50]

    tree = walk(data, (), 0)
    if problems:
        raise InvalidManifest(problems=tuple(problems))
    return tree


Steps = tuple[str | int, ...]


def format_path(steps: Sequence[str | int]) -> str:
    """Steps from the top as a path: `spec.game.roles[0]`."""
    path = ""
    for step in steps:
        path = f"{path}[{step}]" if isinstance(step, int) else join_path(path, step)
    return path


def join_path(path: str, key: str) -> str:
    """A key below a path; keys that are no plain word stand in brackets and quotes."""
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_-]*", key):
        shown = key if len(key) <= 80 else f"{key[:77]}..."
        return f'{path}["{shown}"]'
    return f"{path}.{key}" if path else key


def dump_document(data: JsonValue) -> str:
    """The data as YAML, in its own order; reading it again gives the same data."""
    return str(yaml.dump(data, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120))
