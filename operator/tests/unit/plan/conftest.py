"""`--update-golden`: write the golden files anew, for a person to review."""

from __future__ import annotations

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--update-golden", action="store_true", help="write operator/tests/golden/*.yaml from the present plans"
    )
