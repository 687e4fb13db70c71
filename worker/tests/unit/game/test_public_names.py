"""The names that `swarmgame` exports to authors of games."""

from __future__ import annotations

import subprocess
import sys

import pytest

import swarmgame

HEAVY = ("torch", "transformers", "hivemind", "numpy", "datasets", "aiohttp", "reasoning_gym", "matplotlib")


@pytest.mark.parametrize("name", swarmgame.__all__)
def test_every_exported_name_exists(name: str) -> None:
    assert getattr(swarmgame, name) is not None


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'NoSuchName'"):
        swarmgame.NoSuchName  # noqa: B018


def test_importing_all_exported_names_imports_no_large_library() -> None:
    code = f"import sys; from swarmgame import *; sys.exit(', '.join({{*{HEAVY}}} & set(sys.modules)) or 0)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
