"""YAML text to JSON data and back, with limits for untrusted files.

A file is read as kubectl reads it: `6e-4` is a number, `12:30` and `2026-01-31` are texts. What kubectl, which follows
YAML 1.1, would read differently (`1_000`, `010`, `y`) is refused, so that a run and a cluster never play two games. The
data is built from the parser's events in one pass, because PyYAML's own constructors bound neither aliases nor merge
keys and know more types than JSON (docs/decisions/0003-yaml-loading.md). Invariant: the result is JSON (mappings with
text keys, lists, texts, finite numbers, booleans, null), a tree of bounded size and depth, and no input raises anything
but InvalidManifest.
"""

from __future__ import annotations

import math
import re
from collections.abc import Hashable
from typing import Any

import yaml
from pydantic import JsonValue

from swarmgame_api.errors import InvalidManifest, Problem, Steps, Unquoted, format_path

MAX_BYTES = 1 << 20
MAX_DEPTH = 64
MAX_NODES = 20_000
MAX_ALIASES = 1_000
MAX_KEYS = 2_000

_CORE = "tag:yaml.org,2002:"
_INTEGER = re.compile(r"[-+]?(?:0b[01]+|0o[0-7]+|0x[0-9a-fA-F]+|0|[1-9][0-9]*)")
_FLOAT = re.compile(r"[-+]?(?:[0-9]+\.[0-9]*|\.[0-9]+|[0-9]+)(?:[eE][-+]?[0-9]+)?")
# As in goyaml.v2 of sigs.k8s.io/yaml, resolve.go: it drops underscores first, and 0 alone begins an octal number.
_KUBECTL_INTEGER = re.compile(
    r"[-+]?(?:0[bB][01]+|0[oO]?[0-7]+|0[xX][0-9a-fA-F]+|0|[1-9][0-9]*)|0b[-+][01]+",
)
_KUBECTL_BOOLEANS = frozenset("yYnN")
_SIGNS_AND_DIGITS = frozenset("+-0123456789")
_CONSTANTS: dict[str, bool | float | None] = {
    form: value
    for value, names in ((None, "null"), (True, "yes true on"), (False, "no false off"))
    for name in names.split()
    for form in (name, name.capitalize(), name.upper())
}
_CONSTANTS |= {"": None, "~": None, ".nan": math.nan, ".NaN": math.nan, ".NAN": math.nan}
_CONSTANTS |= {f"{sign}.{name}": float(f"{sign}inf") for sign in ("", "+", "-") for name in ("inf", "Inf", "INF")}
_KINDS = {type(None): "null", bool: "bool", int: "int", float: "float", str: "str"}
_OPEN = object()


def load_documents(text: str) -> list[JsonValue]:
    """Return the documents of a YAML text that are not empty.

    Raises:
        InvalidManifest: it is not YAML, or holds what JSON cannot, or is too large; with the line where that is known.
    """
    if len(text) > MAX_BYTES:
        raise InvalidManifest("", Unquoted(f"{len(text):,} characters long"), f"at most {MAX_BYTES:,}")
    try:
        documents = _Builder(text).documents()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f" at line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise InvalidManifest(
            "", Unquoted(f"not valid YAML{where}"), f"YAML that parses; {error.problem or error.context}"
        ) from error
    except yaml.YAMLError as error:
        reason = str(error).splitlines()[0]
        raise InvalidManifest("", Unquoted("not valid YAML"), f"YAML that parses; {reason}") from error
    return [tree for tree in map(to_json, documents) if tree is not None]


def load_value(text: str) -> JsonValue:
    """Return one value as YAML reads it; an empty text is null."""
    documents = load_documents(text)
    if len(documents) > 1:
        raise InvalidManifest("", text, "one value")
    return documents[0] if documents else None


def dump_document(data: JsonValue) -> str:
    """Return the data as YAML, in its own order; loading it again gives the same data."""
    return str(yaml.dump(data, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120))


class _Builder:
    """Builds the documents of one text from the parser's events. An alias shares the object that it names."""

    def __init__(self, text: str) -> None:
        self._events = iter(yaml.parse(text, Loader=yaml.SafeLoader))
        self._anchors: dict[str, Any] = {}
        self._nodes = self._aliases = 0
        self._pairs: dict[int, int] = {}  # by a mapping's id: its pairs, with those that a merge overrides

    def documents(self) -> list[object]:
        found = []
        for event in self._events:
            if isinstance(event, yaml.DocumentStartEvent):
                self._anchors = {}
                found.append(self._node(next(self._events), 0))
        return found

    def _node(self, event: Any, depth: int, *, is_key: bool = False) -> Any:
        self._nodes += 1
        if self._nodes > 2 * MAX_NODES:  # keys are nodes too
            raise _error(event, f"more than {MAX_NODES:,} values")
        if _is_merge(event) and not is_key:
            raise _error(event, "a merge key outside a mapping")
        if isinstance(event, yaml.AliasEvent):
            return self._alias(event)
        if event.anchor is not None:
            if event.anchor in self._anchors:
                raise _error(event, f"found duplicate anchor {event.anchor!r}")
            self._anchors[event.anchor] = _OPEN
        if isinstance(event, yaml.ScalarEvent):
            value = _scalar(event)
        elif depth >= MAX_DEPTH:
            raise InvalidManifest("", Unquoted("nested too deeply"), f"at most {MAX_DEPTH} levels")
        elif isinstance(event, yaml.SequenceStartEvent):
            value = self._list(event, depth)
        else:
            value = self._mapping(event, depth)
        if event.anchor is not None:
            self._anchors[event.anchor] = value
        return value

    def _alias(self, event: Any) -> Any:
        self._aliases += 1
        if self._aliases > MAX_ALIASES:
            raise _error(event, f"more than {MAX_ALIASES:,} aliases")
        if event.anchor not in self._anchors:
            raise _error(event, f"found undefined alias {event.anchor!r}")
        if (value := self._anchors[event.anchor]) is _OPEN:
            raise _error(event, f"the alias {event.anchor!r} is used inside what it names")
        return value

    def _list(self, start: Any, depth: int) -> list[Any]:
        _check_tag(start, "seq")
        items = []
        while not isinstance(event := next(self._events), yaml.SequenceEndEvent):
            items.append(self._node(event, depth + 1))
        return items

    def _mapping(self, start: Any, depth: int) -> dict[Hashable, Any]:
        _check_tag(start, "map")
        own: dict[Hashable, Any] = {}
        merging = False
        while not isinstance(event := next(self._events), yaml.MappingEndEvent):
            key, value = self._node(event, depth + 1, is_key=True), self._node(next(self._events), depth + 1)
            if not isinstance(key, Hashable):
                raise _error(event, "found unhashable key")
            if key in own:
                raise _error(event, f"duplicate key {key!r}")
            own[key] = value
            merging = merging or _is_merge(event)
        sources = own.pop("<<") if merging else []
        sources = sources if isinstance(sources, list) else [sources]
        if not all(isinstance(source, dict) for source in sources):
            raise _error(start, "expected a mapping or a list of mappings for merging")
        self._pairs[id(own)] = len(own) + sum(self._pairs[id(source)] for source in sources)
        if self._pairs[id(own)] > MAX_KEYS:
            raise _error(start, f"a mapping of more than {MAX_KEYS:,} keys")
        for source in sources:  # the first that has a key counts
            own |= {key: value for key, value in source.items() if key not in own}
        return own


def _is_merge(event: Any) -> bool:
    return isinstance(event, yaml.ScalarEvent) and event.value == "<<" and event.implicit[0]


def _scalar(event: Any) -> Any:
    kind = (event.tag or "!").removeprefix(_CORE)
    if kind == "str" or (kind == "!" and not event.implicit[0]):
        return event.value
    if _is_read_differently(event.value):
        raise _error(
            event,
            f"kubectl reads {event.value[:50]!r} differently: put quotes around a text; write a boolean as true or "
            "false, and a number as 1000 or 0x1f",
        )
    try:
        value = _resolve(event.value)
    except ValueError as error:  # Python reads no integer of more than 4,300 digits
        raise _error(event, f"{event.value[:50]!r} is not a number") from error
    if kind == "float" and _FLOAT.fullmatch(event.value):
        value = float(event.value)
    _check_tag(event, _KINDS[type(value)])
    return value


def _resolve(text: str) -> str | bool | int | float | None:
    """Return what a text without quotes stands for."""
    if text in _CONSTANTS:
        return _CONSTANTS[text]
    if _INTEGER.fullmatch(text):
        return int(text, 0)
    return float(text) if _FLOAT.fullmatch(text) else text


def _is_read_differently(text: str) -> bool:
    """Return whether kubectl reads a text without quotes as another value than `_resolve` does."""
    if text[:1] not in _SIGNS_AND_DIGITS:
        return text in _KUBECTL_BOOLEANS
    plain = text.replace("_", "")
    if _KUBECTL_INTEGER.fullmatch(plain):
        return plain != text or not _INTEGER.fullmatch(text)
    return plain != text and _FLOAT.fullmatch(plain) is not None


def _check_tag(event: Any, kind: str) -> None:
    if event.tag not in (None, "!", _CORE + kind):
        raise _error(event, f"the tag {event.tag!r} is not supported here")


def _error(event: Any, problem: str) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(problem=problem, problem_mark=event.start_mark)


def to_json(data: object) -> JsonValue:
    """Return a copy of the data that is JSON, a tree, and of bounded size.

    Raises:
        InvalidManifest: with every value that JSON cannot hold, or that the data is too large or too deep.
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
                if -(2**63) <= value < 2**63:
                    return value
                return problem(path, "a very large integer", "an integer of at most 64 bits")
            case float():
                return value if math.isfinite(value) else problem(path, str(value), "a finite number")
            case str():
                return text(value, path)
            case dict():
                return {key(name, path): walk(child, (*path, str(name)), depth + 1) for name, child in value.items()}
            case list() | tuple():
                return [walk(child, (*path, index), depth + 1) for index, child in enumerate(value)]
        return problem(path, f"a {type(value).__name__}", "a text, number, boolean, list or mapping")

    def text(value: str, path: Steps) -> str:
        if not value.isascii() and any("\ud800" <= letter <= "\udfff" for letter in value):
            problem(path, "not Unicode text", "a text without lone surrogates")
        return value

    def key(name: object, path: Steps) -> str:
        if isinstance(name, str):
            return text(name, path)
        found = f"under the key {str(name)[:50]}, which YAML reads as a {type(name).__name__}"
        problem(path, found, "texts as keys; put quotes around it")
        return str(name)[:50]

    def problem(path: Steps, found: str, expected: str) -> JsonValue:
        problems.append(Problem(format_path(path), Unquoted(found), expected))
        return None

    tree = walk(data, (), 0)
    if problems:
        raise InvalidManifest(problems=tuple(problems))
    return tree


class _Dumper(yaml.SafeDumper):
    """A SafeDumper that quotes every text that this or another reader would take for another type."""

    def ignore_aliases(self, data: Any) -> bool:
        return True

    def represent_text(self, data: str) -> yaml.ScalarNode:
        is_other = (
            data in _CONSTANTS or _INTEGER.fullmatch(data) or _FLOAT.fullmatch(data) or _is_read_differently(data)
        )
        style = "'" if is_other else None
        # PyYAML writes the rarer line breaks raw and reads them back as blanks; in double quotes it escapes them.
        style = '"' if any(letter in data for letter in "\x85\u2028\u2029") else style
        return self.represent_scalar(_CORE + "str", data, style)

    def increase_indent(self, flow: bool = False, indentless: bool = False) -> None:
        super().increase_indent(flow, False)


_Dumper.add_representer(str, _Dumper.represent_text)
