"""`--set game.maxRounds=5`: changes to a manifest before it is validated.

A path starts at the top (`spec.game.maxRounds`, `metadata.name`) or within spec (`game.maxRounds`). `[0]` is an item
of a list, and one past its end appends; `["a.b/c"]` is a key with dots. Invariant: the given tree is never changed.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Sequence

from pydantic import JsonValue

from swarmgame_api.errors import InvalidManifest, Unquoted, format_path
from swarmgame_api.yaml_io import load_value

TOP = ("apiVersion", "kind", "metadata", "spec")

_STEP = re.compile(
    r"""\.?(?P<key>[^.\[\]="']+)|\[(?P<index>[0-9]{1,6})\]|\[(?P<quote>["'])(?P<quoted>[^"']+)(?P=quote)\]"""
)
_SYNTAX = "path=value, such as game.maxRounds=5 or game.data.with.environments[0].name=gcd"

Step = str | int


def parse_override(text: str) -> tuple[tuple[Step, ...], JsonValue]:
    """Return the steps from the top of the manifest, and the value as YAML reads it."""
    steps: list[Step] = []
    position = 0
    while position < len(text) and text[position] != "=":
        match = _STEP.match(text, position)
        if match is None or (match.group("key") and (match.group(0).startswith(".") != bool(steps))):
            raise InvalidManifest("--set", text, _SYNTAX)
        steps.append(int(match["index"]) if match["index"] else match["key"] or match["quoted"])
        position = match.end()
    if position >= len(text) or not steps:
        raise InvalidManifest("--set", text, _SYNTAX)
    if steps[0] not in TOP:
        steps.insert(0, "spec")
    try:
        value = load_value(text[position + 1 :])
    except InvalidManifest as error:
        raise InvalidManifest("--set", text, f"a value in YAML: {error.problems[0].expected}") from error
    return tuple(steps), value


def apply_overrides(tree: JsonValue, overrides: Sequence[tuple[tuple[Step, ...], JsonValue]]) -> JsonValue:
    """Return the tree with the values put in their places, in order; missing mappings are created.

    Raises:
        InvalidManifest: a path leads through something that is neither mapping nor list, or past the end of a list.
    """
    changed = copy.deepcopy(tree)
    for steps, value in overrides:
        changed = _put(changed, steps, value, 0)
    return changed


def _put(node: JsonValue, steps: tuple[Step, ...], value: JsonValue, done: int) -> JsonValue:
    if done == len(steps):
        return value
    step, where = steps[done], format_path(steps[:done])
    if isinstance(step, int):
        items = [] if node is None else node
        if not isinstance(items, list):
            raise InvalidManifest(
                "--set", format_path(steps), f"a path whose every [index] is in a list; {where} is not a list"
            )
        if step > len(items):
            raise InvalidManifest(
                "--set", format_path(steps), f"an index of at most {len(items)}: {where} has {len(items)} items"
            )
        if step == len(items):
            items.append(None)
        items[step] = _put(items[step], steps, value, done + 1)
        return items
    fields = {} if node is None else node
    if not isinstance(fields, dict):
        reason = f"{where or 'the manifest'} is not a mapping"
        raise InvalidManifest("--set", Unquoted(format_path(steps)), f"a path through mappings; {reason}")
    fields[step] = _put(fields.get(step), steps, value, done + 1)
    return fields
