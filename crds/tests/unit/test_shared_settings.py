"""Settings from the environment: defaults, names, messages, and the table of the reference."""

from __future__ import annotations

import re
from typing import Annotated

import pytest
from pydantic import Field

from swarmgame_common.settings import (
    CommaSeparated,
    EnvironmentSettings,
    InvalidSettings,
    Port,
    SpaceSeparated,
    Variable,
    read_settings,
    settings_table,
)


class Example(EnvironmentSettings):
    name: str
    """Its name."""
    port: Port = 8080
    """Where it listens."""
    index: Annotated[int, Field(ge=0), Variable("EXAMPLE_INDEX", "JOB_INDEX", expected="a number of at least 0")] = 0
    """Its number."""
    url: Annotated[str, Field(pattern="^https:"), Variable(secret=True)] = "https://localhost"
    """May hold a password."""
    images: CommaSeparated = ("a", "b")
    addresses: SpaceSeparated = ()


def read(**environment: str) -> Example:
    return read_settings(Example, environment, prefix="EXAMPLE_")


def test_a_setting_is_the_variable_of_its_name_and_an_empty_one_is_not_set() -> None:
    found = read(EXAMPLE_NAME="x", EXAMPLE_PORT="", EXAMPLE_IMAGES="c, d,", EXAMPLE_ADDRESSES=" /a  /b ", OTHER="1")
    assert found == Example(name="x", images=("c", "d"), addresses=("/a", "/b"))


def test_the_first_name_that_is_set_counts() -> None:
    assert read(EXAMPLE_NAME="x", JOB_INDEX="3").index == 3
    assert read(EXAMPLE_NAME="x", JOB_INDEX="3", EXAMPLE_INDEX="2").index == 2


def test_every_variable_that_cannot_be_used_is_named_with_its_value() -> None:
    with pytest.raises(InvalidSettings) as caught:
        read(EXAMPLE_PORT="70000", JOB_INDEX="-1")
    name, port, index = str(caught.value).splitlines()
    assert name.startswith("EXAMPLE_NAME is not set")
    assert port.startswith("EXAMPLE_PORT is '70000'; Input should be less than")
    assert index == "JOB_INDEX is '-1'; expected a number of at least 0"


@pytest.mark.parametrize("text", ["8080.0", "+8080", " 8080", "8_080", "-1", "many"])
def test_a_port_has_digits_only(text: str) -> None:
    with pytest.raises(InvalidSettings, match=rf"EXAMPLE_PORT is '{re.escape(text)}'; Input should be a number"):
        read(EXAMPLE_NAME="x", EXAMPLE_PORT=text)


def test_a_secret_is_not_shown() -> None:
    with pytest.raises(InvalidSettings, match="EXAMPLE_URL is «hidden»") as caught:
        read(EXAMPLE_NAME="x", EXAMPLE_URL="http://user:password@host")
    assert "password" not in str(caught.value)


def test_an_unknown_variable_with_the_prefix_is_refused_if_so_chosen() -> None:
    environment = {"EXAMPLE_NAME": "x", "EXAMPLE_PROT": "1"}
    assert read_settings(Example, environment, prefix="EXAMPLE_").port == 8080
    with pytest.raises(InvalidSettings, match="EXAMPLE_PROT is '1'; there is no such setting"):
        read_settings(Example, environment, prefix="EXAMPLE_", refuse_unknown=True)


def test_an_empty_value_is_checked_if_so_chosen() -> None:
    environment = {"EXAMPLE_NAME": "", "EXAMPLE_PORT": ""}
    with pytest.raises(InvalidSettings, match="EXAMPLE_PORT is ''"):
        read_settings(Example, environment, prefix="EXAMPLE_", keep_empty=True)


def test_the_table_has_the_variables_their_defaults_and_their_sentences() -> None:
    assert settings_table(Example, "EXAMPLE_")[2:5] == [
        "| `EXAMPLE_NAME` | Its name. | required |",
        "| `EXAMPLE_PORT` | Where it listens. | `8080` |",
        "| `EXAMPLE_INDEX`, `JOB_INDEX` | Its number. | `0` |",
    ]
