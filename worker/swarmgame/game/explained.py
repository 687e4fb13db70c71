"""Errors of the author's code, as sentences with the author's lines."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from swarmgame.errors import BadGame, InvalidManifest, SwarmGameError
from swarmgame.user_code import describe


@contextmanager
def explained(component: type, doing: str) -> Iterator[None]:
    """Turn an exception of an author's class into `BadGame` with the author's lines.

    Args:
        component: the class; an exception of a built-in one is a bug, and stays as it is.
        doing: what it did: `round_data`, `its constructor`.
    """
    try:
        yield
    except (SwarmGameError, InvalidManifest):
        raise
    except Exception as error:
        if component.__module__.partition(".")[0] == "swarmgame":
            raise
        found = describe(error)
        raise BadGame(f"{component.__module__}:{component.__name__} failed in {doing}: {found}{found.below}") from error
