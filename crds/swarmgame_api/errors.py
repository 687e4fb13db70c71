"""The error of this package: an unusable manifest, with messages from which its author can correct it."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass

SHOWN = 200
"""Characters of a found value that a message shows."""


class Unquoted(str):
    """A description shown in place of a found value, without quotes: `not a field`."""


UNKNOWN_FIELD = Unquoted("not a field")


def show(value: object) -> str:
    """Return a found value as its author would write it in YAML, shortened."""
    if value is None:
        return "missing"
    if isinstance(value, Unquoted):
        return str(value)
    try:
        text = json.dumps(value, ensure_ascii=False)
        text.encode()
    except (TypeError, ValueError, RecursionError):
        text = ascii(value) if isinstance(value, str) else f"a {type(value).__name__}"
    return text if len(text) <= SHOWN else f"{text[: SHOWN - 3]}..."


Steps = tuple[str | int, ...]


def format_path(steps: Sequence[str | int]) -> str:
    """Return steps from the top as a path: `spec.game.roles[0]`."""
    path = ""
    for step in steps:
        path = f"{path}[{step}]" if isinstance(step, int) else join_path(path, step)
    return path


def join_path(path: str, key: str) -> str:
    """Return the path of a key below a path; a key that is not a plain word stands in brackets and quotes."""
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_-]*", key):
        shown = key if len(key) <= 80 else f"{key[:77]}..."
        return f'{path}["{shown}"]'
    return f"{path}.{key}" if path else key


@dataclass(frozen=True)
class Problem:
    """One error in a manifest.

    Args:
        path: dotted, from the top of the manifest: `spec.game.trainer.with.generations`.
        got: the value found there; None where there is none; an `Unquoted` text where the key itself is the problem.
        expected: a correct value, as the end of a sentence.
    """

    path: str
    got: object
    expected: str

    def __str__(self) -> str:
        return f"{self.path or 'the manifest'} is {show(self.got)}; expected {self.expected}"


class InvalidManifest(Exception):
    """A manifest that cannot be used; carries every problem found, not only the first."""

    def __init__(
        self,
        path: str = "",
        got: object = None,
        expected: str = "",
        *,
        source: str = "",
        problems: tuple[Problem, ...] = (),
    ) -> None:
        self.problems = problems or (Problem(path, got, expected),)
        self.source = source
        super().__init__(path, got, expected)

    def at(self, source: str) -> InvalidManifest:
        """Return the same error with the name of its file."""
        return InvalidManifest(source=source, problems=self.problems)

    def __str__(self) -> str:
        prefix = f"{self.source}: " if self.source else ""
        return "\n".join(f"{prefix}{problem}" for problem in self.problems)
