"""`swarmgame new NAME`: makes a game that runs, with tests that pass.

The templates are in `templates/`, one folder a kind; `$name` and `$package` are filled in. Nothing that exists is
overwritten, and the folder appears complete or not at all.
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


class GameKind(StrEnum):
    """The kind of game to begin with."""

    TEXT = "text"
    IMAGES = "images"
    ENVIRONMENT = "environment"


def new(
    name: Annotated[
        str,
        typer.Argument(metavar="NAME", help="Name of the game, and of the folder that is made.", show_default=False),
    ],
    kind: Annotated[
        GameKind | None,
        typer.Option(
            "--kind",
            help="`text`: words and a language model (the default). `images`: pictures and a small network. "
            "`environment`: as --environment.",
            show_default=False,
        ),
    ] = None,
    environment: Annotated[
        bool, typer.Option("--environment", help="A game of several turns, with an environment that answers.")
    ] = False,
) -> None:
    """Make a game of your own: a folder with a manifest, two classes to change, and a test that passes.

    [bold]Examples[/bold]

      swarmgame new my-game

      swarmgame new stripes --kind images

      swarmgame new lock --environment
    """
    if environment and kind not in (None, GameKind.ENVIRONMENT):
        raise BadUsage(f"--environment makes another kind of game than --kind {kind}; give one of them")
    package = package_of(name)
    folder = scaffold(name, GameKind.ENVIRONMENT if environment else kind or GameKind.TEXT)
    print_message(f"{folder}/ is ready. Begin with {folder}/{package}/__init__.py, then:")
    print_message(f"  cd {folder} && pytest && swarmgame run game.yaml")


def scaffold(name: str, kind: GameKind = GameKind.TEXT, parent: Path = Path()) -> Path:
    """Make the folder `parent/name`.

    Args:
        name: lower-case letters, digits and dashes, since it also names the game on a cluster. The package has
            underscores instead of dashes.

    Raises:
        BadUsage: the name is not allowed, or a file of that name exists.
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
    """Return the Python package of a game.

    Raises:
        BadUsage: the name is not allowed, or Python has a module of that name.
    """
    if not re.fullmatch(r"[a-z]([-a-z0-9]*[a-z0-9])?", name) or len(name) > LONGEST:
        raise BadUsage(
            f"{name!r} cannot be the name of a game: expected at most {LONGEST} lower-case letters, digits and dashes, "
            "a letter first"
        )
    package = name.replace("-", "_")
    taken = package in sys.stdlib_module_names or package == "tests" or importlib.util.find_spec(package) is not None
    if keyword.iskeyword(package) or taken:
        raise BadUsage(f"{name!r} cannot be the name of a game: Python has something of that name already")
    return package
