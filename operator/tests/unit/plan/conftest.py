"""`--update-golden`: writes the golden manifests anew, for a person to review as a difference."""

from __future__ import annotations

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--update-golden", action="store_true", help="write operator/tests/golden/*.yaml from what is planned now"
    )
