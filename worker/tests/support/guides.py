"""The pages of the documentation, and what is in them: blocks of code, commands, links."""

from __future__ import annotations

import re
from pathlib import Path

from running import ROOT

GUIDES = ROOT / "docs" / "guide"


def blocks(page: Path, language: str) -> list[str]:
    """Return the code blocks of a language, in order."""
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)


def commands(page: Path) -> list[str]:
    """Return the lines of the sh blocks, in order, without remarks."""
    return [re.sub(r"\s{2,}#.*", "", line) for block in blocks(page, "sh") for line in block.splitlines()]


def links(page: Path) -> list[str]:
    """Return the targets of links within the repository."""
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    found = re.findall(r"\]\(([^)\s]+)\)", text.replace("\n", " "))
    return [target for target in found if "://" not in target]
