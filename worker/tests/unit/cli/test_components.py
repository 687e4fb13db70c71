"""`swarmgame components`: what may be used, and with which options, from the components themselves."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import pytest
from pydantic import Field

from swarmgame.cli.component_reference import ComponentOption, components_page, installed_components, options_of
from swarmgame.cli.main import run_command
from swarmgame.config import Config


class Inner(Config):
    depth: int = 3
    """How deep."""


class Outer(Config):
    first_name: str
    """Whose."""
    share: Annotated[float, Field(gt=0)] = 0.5
    """How much."""
    inner: Inner | None = None
    """One of it."""
    many: tuple[Inner, ...] = ()
    """Several."""


def test_options_have_the_manifests_names_and_nested_ones_follow_their_parent() -> None:
    assert list(options_of(Outer)) == [
        ComponentOption("firstName", "a text", "required", "Whose."),
        ComponentOption("share", "a number of more than 0", "0.5", "How much."),
        ComponentOption("inner", "the fields below", "", "One of it."),
        ComponentOption("inner.depth", "an integer", "3", "How deep."),
        ComponentOption("many", "a list, each with the fields below", "[]", "Several."),
        ComponentOption("many[].depth", "an integer", "3", "How deep."),
    ]


def test_the_reference_page_is_current_and_explains_every_option() -> None:
    components = installed_components()
    assert (Path(__file__).parents[4] / "docs/reference/components.md").read_text(encoding="utf-8") == components_page(
        components
    )
    assert {(each.kind, each.use) for each in components} >= {
        ("data", "reasoning-gym"),
        ("rewards", "exact"),
        ("trainer", "grpo"),
    }
    for each in components:
        assert each.summary
        assert not [option.path for option in each.options if not option.meaning], each.use


def test_a_component_is_shown_as_a_line_of_json_for_each_kind_that_has_the_name(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run_command(["components", "show", "reasoning-gym"]) == 0
    shown = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [each["kind"] for each in shown] == ["data", "rewards"]
    assert shown[0]["options"][0]["path"] == "environments"
    assert run_command(["components", "show", "grpo"]) == 0
    [grpo] = map(json.loads, capsys.readouterr().out.splitlines())
    assert {"loss", "generations", "sampler", "lora.rank"} <= {option["path"] for option in grpo["options"]}


def test_a_name_that_is_nearly_right_gets_a_suggestion(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(["components", "show", "grop"]) == 78
    assert "grpo" in capsys.readouterr().err
