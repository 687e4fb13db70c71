"""`swarmgame new NAME`: a game of your own that runs, with a test that passes.

Templates lie beside this module, one folder a kind; `$name` and `$package` are all that is filled in. Invariant:
nothing that exists is ever written over, and a folder appears whole or not at all.
"""

from __future__ import annotations

import importlib.util
import keyword
import re
import sys
import tempfile
from enum import StrEnum
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Annotated

import typer

from swarmgame.cli.options import print_message
from swarmgame.errors import BadUsage

LONGEST = 52

_LAYOUT = {
    "{kind}/game.yaml": "game.yaml",
    "{kind}/package.py": "{package}/__init__.py",
    "{kind}/test_package.py": "tests/test_{package}.py",
    "{kind}/README.md": "README.md",
    "pyproject.toml": "pyproject.toml",
    "gitignore": ".gitignore",
}


class Kind(StrEnum):
    """What a game begins as."""

    TEXT = "text"
    IMAGES = "images"


def new(
    name: Annotated[
        str,
        typer.Argument(metavar="NAME", help="Name of the game, and of the folder that is made.", show_default=False),
    ],
    kind: Annotated[
        Kind, typer.Option("--kind", help="Words and a language model, or pictures and a small network.")
    ] = Kind.TEXT,
) -> None:
    """Make a game of your own: a folder with a manifest, two classes to change, and a test that passes.

    [bold]Examples[/bold]

      swarmgame new my-game

      swarmgame new stripes --kind images
    """
    package = package_of(name)
    folder = scaffold(name, kind)
    print_message(f"{folder}/ is ready. Begin with {folder}/{package}/__init__.py, then:")
    print_message(f"  cd {folder} && pytest && swarmgame run game.yaml")


def scaffold(name: str, kind: Kind = Kind.TEXT, parent: Path = Path()) -> Path:
    """Makes the folder `parent/name`.

    Args:
        name: lower-case letters, digits and dashes: it names the game on a cluster, too. The package has underscores
            for the dashes.

    Raises:
        BadUsage: the name cannot be used, or something of that name exists.
    """
    package = package_of(name)
    target = parent / name
    if target.exists() or target.is_symlink():
        raise BadUsage(f"{target} exists already, and is left as it is; choose another name, or remove it")
    if not parent.is_dir():
        raise BadUsage(f"{parent} is no folder")
    templates = files("swarmgame.cli") / "templates"
    try:
        with tempfile.TemporaryDirectory(prefix=".swarmgame-new-", dir=parent) as temporary:
            made = Path(temporary) / name
            for source, destination in _LAYOUT.items():
                text = (templates / f"{source.format(kind=kind)}.template").read_text(encoding="utf-8")
                path = made / destination.format(package=package)
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(Template(text).substitute(name=name, package=package), encoding="utf-8")
            made.rename(target)
    except OSError as error:
        raise BadUsage(f"{target} cannot be made: {error.strerror or error}") from error
    return target


def package_of(name: str) -> str:
    """The Python package of a game.

    Raises:
        BadUsage: the name cannot be that of a game, or Python has a module of that name already.
    """
    if not re.fullmatch(r"[a-z]([-a-z0-9]*[a-z0-9])?", name) or len(name) > LONGEST:
        raise BadUsage(
            f"{name!r} cannot be the name of a game: at most {LONGEST} lower-case letters, digits and dashes, a letter first"
        )
    package = name.replace("-", "_")
    taken = package in sys.stdlib_module_names or package == "tests" or importlib.util.find_spec(package) is not None
    if keyword.iskeyword(package) or taken:
        raise BadUsage(f"{name!r} cannot be the name of a game: Python has something of that name already")
    return package
