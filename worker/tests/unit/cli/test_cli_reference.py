"""The reference of the command line is what the commands say of themselves."""

from __future__ import annotations

from pathlib import Path

from swarmgame.cli.reference import MEANINGS, reference
from swarmgame.errors import ExitCode


def test_the_reference_page_is_current() -> None:
    page = Path(__file__).parents[4] / "docs/reference/cli.md"
    assert page.read_text(encoding="utf-8") == reference()


def test_every_exit_code_has_a_meaning() -> None:
    assert list(MEANINGS) == list(ExitCode)


def test_every_command_and_option_is_explained() -> None:
    text = reference()
    for command in ("run", "join", "validate", "report", "new", "peer", "env list", "env show", "env check"):
        assert f"\n## swarmgame {command}\n" in text
    rows = [line.split(" | ") for line in text.splitlines() if line.startswith("| `")]
    assert len(rows) > 40
    assert all(row[1].strip() for row in rows)
