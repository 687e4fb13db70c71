"""Settings from the environment, and their page."""

from __future__ import annotations

from pathlib import Path

import pytest

from swarmgame_common.settings import InvalidSettings
from swarmgame_operator.settings import operator_settings, reference

PAGE = Path(__file__).parents[4] / "docs" / "reference" / "operator-settings.md"


def test_lists_and_numbers_are_read_and_other_variables_are_not_ours() -> None:
    found = operator_settings(
        {
            "PATH": "/bin",
            "SWARMGAME_OPERATOR_WATCH_NAMESPACES": "a, b,",
            "SWARMGAME_OPERATOR_WORKERS": "4",
            "SWARMGAME_OPERATOR_WORKER_IMAGE": "example.dev/w:1",
            "SWARMGAME_OPERATOR_IMAGE_PULL_SECRETS": "one,two",
        }
    )
    assert (found.watch_namespaces, found.workers) == (("a", "b"), 4)
    assert found.defaults.worker_image == "example.dev/w:1"
    assert found.defaults.image_pull_secrets == ("one", "two")


def test_every_variable_that_is_wrong_is_named() -> None:
    with pytest.raises(InvalidSettings) as error:
        operator_settings(
            {
                "SWARMGAME_OPERATOR_WORKERS": "0",
                "SWARMGAME_OPERATOR_WROKERS": "4",
                "SWARMGAME_OPERATOR_LOG_FORMAT": "xml",
            }
        )
    for word in (
        "SWARMGAME_OPERATOR_WORKERS is '0'",
        "SWARMGAME_OPERATOR_WROKERS",
        "SWARMGAME_OPERATOR_LOG_FORMAT is 'xml'",
    ):
        assert word in str(error.value)


def test_the_page_of_settings_is_current() -> None:
    assert PAGE.read_text(encoding="utf-8") == reference(), "run `python -m swarmgame_operator.settings`"
