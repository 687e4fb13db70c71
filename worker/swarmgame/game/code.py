"""The code of a game: the author's modules that a manifest names, and those of the author that they import.

Modules are found as Python would find them, and read, not imported. A module is the author's if it lies in the
manifest's folder, or in the same package as one that the manifest names. Comments, blank lines and line ends do not
count, so that only what can run makes a difference.
"""

from __future__ import annotations

import ast
import io
import tokenize
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from importlib.machinery import PathFinder
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from swarmgame.game.sources import fingerprint

_KEYS = frozenset({"use", "function"})
"""Keys of a manifest whose values name code as `package.module:attribute`."""
_ENVIRONMENTS = "swarmgame.environments"
_PROJECT = frozenset({"swarmgame", "swarmgame_api", "swarmgame_chain", "swarmgame_common"})


@dataclass(frozen=True, slots=True)
class GameCode:
    """The files of a game's code, by the name of the module."""

    files: Mapping[str, Path]

    @property
    def fingerprint(self) -> str:
        """Of names and contents; the same on every machine."""
        return fingerprint([[name, _essence(path)] for name, path in sorted(self.files.items())])


def find_code(parts: Iterable[Mapping[str, Any]], folder: Path | None) -> GameCode:
    """Return the code of a game.

    Args:
        parts: sections of the manifest, such as data and rewards, as plain data.
        folder: of the manifest; None: only packages that it names count.
    """
    own = {entry.name: entry.module for entry in entry_points(group=_ENVIRONMENTS)}
    named = sorted({name for part in parts for name in _named(part, own)})
    packages = {name.partition(".")[0] for name in named}
    found: dict[str, Path] = {}
    seen: set[str] = set()
    waiting = list(named)
    while waiting:
        name = waiting.pop()
        for each in _with_parents(name):
            path = _file_of(each, folder) if each not in seen else None
            seen.add(each)
            if path is None or not _is_of_game(each, path, packages, folder):
                continue
            found[each] = path
            waiting += _imports(each, path)
    return GameCode(found)


def _named(value: object, environments: Mapping[str, str]) -> Iterator[str]:
    """Yield the modules that a section of the manifest names.

    Args:
        environments: the modules of the author's installed environments, by name.
    """
    if isinstance(value, Mapping):
        for key, inner in value.items():
            if key in _KEYS and isinstance(inner, str) and ":" in inner:
                yield inner.partition(":")[0]
            elif key == "name" and isinstance(inner, str) and inner in environments:
                yield environments[inner]
            else:
                yield from _named(inner, environments)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _named(inner, environments)


def _with_parents(name: str) -> list[str]:
    parts = name.split(".")
    return [".".join(parts[:length]) for length in range(1, len(parts) + 1)]


def _file_of(name: str, folder: Path | None) -> Path | None:
    """Return the file of a module; None for one that is not written in Python, or that there is not."""
    path: list[str] | None = None
    if folder is not None and _exists_in(folder, name.partition(".")[0]):
        path = [str(folder)]
    spec = None
    for part in _with_parents(name):
        spec = PathFinder.find_spec(part, path)
        if spec is None:
            return None
        path = list(spec.submodule_search_locations or ())
    origin = Path(spec.origin) if spec is not None and spec.origin else None
    return origin if origin is not None and origin.suffix == ".py" and origin.is_file() else None


def _exists_in(folder: Path, name: str) -> bool:
    return (folder / f"{name}.py").is_file() or (folder / name).is_dir()


def _is_of_game(name: str, path: Path, packages: set[str], folder: Path | None) -> bool:
    package = name.partition(".")[0]
    if package in _PROJECT:
        return False
    beside = (
        folder is not None and path.resolve().is_relative_to(folder.resolve()) and "site-packages" not in path.parts
    )
    return package in packages or beside


def _imports(name: str, path: Path) -> Iterator[str]:
    """Yield every module that a file may import; names of attributes are among them."""
    try:
        tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError):
        return  # importing it shows the error
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parents = package.split(".") if package else []
            above = parents[: len(parents) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            if base:
                yield base
            yield from (f"{base}.{alias.name}" if base else alias.name for alias in node.names if alias.name != "*")


def _essence(path: Path) -> str:
    """Return the text of a file without comments, blank lines and the space at line ends, but for those in a text."""
    data = path.read_bytes()
    try:
        tokens = list(tokenize.tokenize(io.BytesIO(data).readline))
        text = data.decode(tokens[0].string)
    except (SyntaxError, tokenize.TokenError, UnicodeDecodeError):
        return data.hex()
    lines = text.splitlines()
    in_texts: set[int] = set()
    for token in tokens:
        (row, column), (last, _) = token.start, token.end
        if token.type == tokenize.COMMENT:
            lines[row - 1] = lines[row - 1][:column]
        elif last > row:
            in_texts.update(range(row - 1, last))
    kept = (line if row in in_texts else line.rstrip() for row, line in enumerate(lines))
    return "\n".join(line for row, line in enumerate(kept) if line or row in in_texts)
