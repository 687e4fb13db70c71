"""One sandbox for all of a folder's tests: starting it costs more than most of them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from swarmgame.rewards.sandbox import Sandbox, SharedSandbox


@pytest.fixture(scope="session")
def sandbox() -> Iterator[Sandbox]:
    shared = SharedSandbox.hold()
    shared.prepare("swarmgame.data.environments:warm")
    yield shared
    SharedSandbox.release()
