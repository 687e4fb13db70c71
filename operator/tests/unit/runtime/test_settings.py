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


def test_the_defaults_of_pods_are_read_from_json_and_a_mistake_is_named_without_the_values() -> None:
    name = "SWARMGAME_OPERATOR_POD_DEFAULTS"
    found = operator_settings({name: '{"nodeSelector": {"pool": "games"}, "env": [{"name": "A", "value": "b"}]}'})
    assert found.defaults.pod_defaults.node_selector == {"pool": "games"}
    for text, problem in (
        ('{"nodeSelektor": {}, "env": [{"name": "A", "value": "secret"}]}', "games.podDefaults.nodeSelektor"),
        ('{"env": [{"name": "SWARMGAME_INDEX", "value": "secret"}]}', "games.podDefaults.env"),
        ('{"resources": {"limits": {"nvidia.com/gpu": "1"}}}', "games.podDefaults.resources"),
        ("[", "games.podDefaults"),
    ):
        with pytest.raises(InvalidSettings) as error:
            operator_settings({name: text})
        assert name in str(error.value)
        assert problem in str(error.value)
        assert "secret" not in str(error.value)


def test_the_page_of_settings_is_current() -> None:
    assert PAGE.read_text(encoding="utf-8") == reference(), "run `python -m swarmgame_operator.settings`"
