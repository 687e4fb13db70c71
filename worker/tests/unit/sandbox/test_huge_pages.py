"""Moving the heap into huge pages changes nothing but the cost of a fork."""

from __future__ import annotations

import pytest

from swarmgame.sandbox import huge_pages
from swarmgame.sandbox.huge_pages import HugePages


def test_what_is_in_the_heap_stays_as_it_is() -> None:
    values = [str(number) * 20 for number in range(100_000)]
    before = hash(tuple(values))
    pages = HugePages()
    moved = pages.collapse()
    assert hash(tuple(values)) == before
    assert moved >= 0
    assert pages.collapse() <= moved, "what has been moved is not moved again"


def test_without_the_map_of_the_process_nothing_is_moved(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> int:
        raise PermissionError

    monkeypatch.setattr(huge_pages.os, "open", refuse)
    assert HugePages().collapse() == 0
