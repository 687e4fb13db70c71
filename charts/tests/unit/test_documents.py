"""The documents: valid manifests, links that lead somewhere, and an explanation of every alert and reason."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from rendered import CHARTS, OPERATOR

from swarmgame_api.load import parse_manifest
from swarmgame_api.status import REASONS

DOCS = CHARTS.parent / "docs"
GUIDE = DOCS / "guide" / "kubernetes.md"
RUNBOOKS = DOCS / "runbooks"
PAGES = [GUIDE, *sorted(RUNBOOKS.glob("*.md")), *sorted(CHARTS.glob("*/README.md"))]
DECISIONS = sorted((DOCS / "decisions").glob("[0-9]*.md"))
ALL = [
    *sorted(DOCS.rglob("*.md")),
    *sorted(CHARTS.glob("*/README.md")),
    *(DOCS.parent / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "e2e/README.md")),
    *(DOCS.parent / name for name in ("benchmarks/README.md", "hack/native-cluster/README.md")),
]
LONGEST_LINE = 120
MOST_LINES_OF_README = 180
ALERTS = re.findall(r"- alert: (\w+)", (OPERATOR / "templates" / "prometheusrule.yaml").read_text())
VALUES = yaml.safe_load((OPERATOR / "values.yaml").read_text())


def blocks(page: Path, language: str) -> Iterator[str]:
    yield from re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)


def anchors(page: Path) -> set[str]:
    headings = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("text", list(blocks(GUIDE, "yaml")), ids=lambda text: yaml.safe_load(text)["metadata"]["name"])
def test_every_manifest_of_the_guide_is_valid(text: str) -> None:
    assert parse_manifest(yaml.safe_load(text)).kind == "SwarmGame"


@pytest.mark.parametrize("page", ALL, ids=lambda page: f"{page.parent.name}/{page.name}")
def test_every_link_has_a_target(page: Path) -> None:
    for link in re.findall(r"\]\(([^)]+)\)", page.read_text()):
        if link.startswith("https://"):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), f"{page.name}: {link}"
        if anchor:
            assert anchor in anchors(target), f"{page.name}: {link}"


def test_the_index_of_decisions_has_every_decision() -> None:
    index = (DOCS / "decisions" / "README.md").read_text()
    assert re.findall(r"^\| \[\d{4}\]\(([^)]+)\)", index, re.MULTILINE) == [page.name for page in DECISIONS]
    for page in DECISIONS:
        title = re.findall(r"^# \d+\. (.*)$", page.read_text(), re.MULTILINE)[0]
        assert f"({page.name}) | {title} |" in index, page.name


@pytest.mark.parametrize("page", ALL, ids=lambda page: f"{page.parent.name}/{page.name}")
def test_no_line_of_prose_is_too_long(page: Path) -> None:
    """Tables, commands and output are excepted, and pages that are generated from the code."""
    prose = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    if page.parent.name != "reference" and page.parent.parent != CHARTS:
        assert [line for line in prose.splitlines() if len(line) > LONGEST_LINE and not line.startswith("|")] == []


def test_the_readme_is_short() -> None:
    assert len((DOCS.parent / "README.md").read_text().splitlines()) <= MOST_LINES_OF_README


@pytest.mark.parametrize("alert", ALERTS)
def test_every_alert_has_a_complete_runbook(alert: str) -> None:
    page = RUNBOOKS / f"{alert}.md"
    assert re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE) == [
        alert,
        "What it means",
        "How to look",
        "What to do",
    ]
    assert f"[{alert}]({alert}.md)" in (RUNBOOKS / "README.md").read_text()
    assert list(blocks(page, "sh"))


def test_there_is_no_runbook_without_an_alert() -> None:
    assert {page.stem for page in RUNBOOKS.glob("*.md")} == {*ALERTS, "README"}


@pytest.mark.parametrize("condition", REASONS)
def test_every_reason_of_a_condition_is_explained(condition: str) -> None:
    table = GUIDE.read_text().split("## When something is wrong")[1]
    (rows,) = re.findall(rf"^\| {condition} \|.*\n(?:\| \|.*\n)*", table, re.MULTILINE)
    assert set(re.findall(r"`(\w+)`", "\n".join(row.split("|")[2] for row in rows.splitlines()))) == set(
        REASONS[condition]
    )


@pytest.mark.parametrize("page", PAGES[: -len(list(CHARTS.glob("*/README.md")))], ids=lambda page: page.name)
def test_every_value_that_a_page_mentions_exists(page: Path) -> None:
    sections = "|".join(name for name, value in VALUES.items() if isinstance(value, dict) and value)
    for name in re.findall(rf"`((?:{sections})\.[\w.]+)", page.read_text()):
        if name.split(".")[0] == "resources" or name.endswith(".yaml"):
            continue
        node: Any = VALUES
        for key in name.split("."):
            assert key in node, f"{page.name}: {name}"
            node = node[key]


def test_the_commands_use_only_known_programs() -> None:
    known = {"helm", "kubectl", "make", "swarmgame", "curl", "export", "sleep", "POD=$(kubectl"}
    for page in PAGES:
        for block in blocks(page, "sh"):
            first = {line.split()[0] for line in block.splitlines() if line.strip()}
            assert first <= known, page.name
