"""Finding the classes that a manifest names, and checking their configuration.

A name is that of an entry point, or `package.module:Class`. Invariant: each mistake that the manifest's author can
correct is an `InvalidManifest` with its path.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Mapping
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from pydantic import BaseModel, ValidationError

from swarmgame.game.components import Component
from swarmgame.user_code import describe
from swarmgame_api.errors import InvalidManifest
from swarmgame_api.validation_messages import did_you_mean, explain


def find_component(name: str, base: type, *, group: str, path: str) -> type[Component]:
    """Return the class of a component.

    Args:
        base: the kind of component that it must be: DataManager, RewardManager or Trainer.
        group: of entry points.
        path: of the name in the manifest.

    Raises:
        InvalidManifest: there is none, it is of another kind, or it lacks methods.
    """
    if ":" in name:
        found = _import(name, path)
    else:
        registered = {entry.name: entry for entry in entry_points(group=group)}
        if name not in registered:
            expected = (
                f"one of {', '.join(sorted(registered))}, or package.module:Class{did_you_mean(name, registered)}"
            )
            raise InvalidManifest(path, name, expected)
        found = _loaded(registered[name], path)
    if not (isinstance(found, type) and issubclass(found, Component) and issubclass(found, base)):
        raise InvalidManifest(path, name, f"a subclass of swarmgame.{base.__name__}")
    if inspect.isabstract(found):
        missing = ", ".join(sorted(getattr(found, "__abstractmethods__", ())))
        raise InvalidManifest(path, name, f"a class with every method of swarmgame.{base.__name__}; it lacks {missing}")
    return found


def validate_config(component: type[Component], given: Mapping[str, Any], path: str) -> BaseModel:
    """Return a component's configuration.

    Args:
        path: of the `with` block.

    Raises:
        InvalidManifest: every mistake in it.
    """
    try:
        return component.Config.model_validate(dict(given), by_alias=True, by_name=False)
    except ValidationError as error:
        raise InvalidManifest(problems=explain(component.Config, error.errors(include_url=False), path)) from error


def _loaded(entry: EntryPoint, path: str) -> object:
    """Return the class of an entry point, which a package of the author's may have added."""
    try:
        return entry.load()
    except Exception as error:
        if entry.module.partition(".")[0] == "swarmgame":
            raise
        found = describe(error)
        expected = f"a component whose class {entry.value} can be imported; {found}{found.below}"
        raise InvalidManifest(path, entry.name, expected) from error


def _import(name: str, path: str) -> object:
    module_name, _, attribute = name.partition(":")
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        expected = "a module that can be imported: put it beside the manifest, or on PYTHONPATH"
        raise InvalidManifest(path, name, f"{expected} ({error})") from error
    except Exception as error:
        # An author's module may raise anything while it is imported; the author needs to know where.
        found = describe(error)
        raise InvalidManifest(path, name, f"a module that can be imported; {found}{found.below}") from error
    if not hasattr(module, attribute):
        raise InvalidManifest(
            path, name, f"a class that {module_name} has; it has {', '.join(_classes(module)) or 'none'}"
        )
    return getattr(module, attribute)


def _classes(module: object) -> list[str]:
    """Return the components that a module defines; without those that it imports, unless it defines none."""
    found = [value for value in vars(module).values() if isinstance(value, type) and issubclass(value, Component)]
    own = [value for value in found if value.__module__ == getattr(module, "__name__", "")]
    return sorted(value.__name__ for value in own or found)
