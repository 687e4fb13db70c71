"""Fixtures that several layers share. What they import is imported when they are used."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from swarmgame.game.state import Contribution
    from swarmgame.sandbox.client import Sandbox


@pytest.fixture(scope="session")
def sandbox() -> Iterator[Sandbox]:
    """One sandbox for all tests of a session: starting it costs more than most of them."""
    from swarmgame.sandbox.client import SharedSandbox

    shared = SharedSandbox.hold()
    shared.prepare("swarmgame.data.environments:warm")
    yield shared
    SharedSandbox.release()


@pytest.fixture(scope="session")
def contribution_of() -> Callable[..., Contribution]:
    """Make a contribution to exchange."""
    from contributions import make_contribution

    return make_contribution
