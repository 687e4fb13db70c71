"""The report's rollouts: for each environment the best, the worst and the longest of the last rounds.

Only what the run's own peers generated. Invariant: every text is escaped twice over, control characters to visible
escapes and then HTML.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import jinja2
from markupsafe import Markup

from swarmgame.archive.display import answer, cut, facts, prompt_text, use
from swarmgame.archive.files import round_files
from swarmgame.archive.reader import load
from swarmgame.archive.selection import Row, best, longest, worst
from swarmgame.archive.writer import ArchiveState
from swarmgame.errors import BadData
from swarmgame.observability.run_directory import RunDirectory

LAST_ROUNDS = 10
"""Rounds of each peer that are searched: the policy as it is now, and a report in a second."""
EACH = 2
"""Rollouts of each kind, of different questions."""


@dataclass(frozen=True)
class Sample:
    """One rollout of the page, as texts that are not yet escaped for HTML; `texts` are (author, text) by turns."""

    kind: str
    facts: str
    use: str
    prompt: str
    texts: list[tuple[str, str]]


def rollouts_section(directory: RunDirectory) -> Markup:
    """Return the section of the page; empty where nothing is archived."""
    rows, names, absent = _last_rows(directory)
    if not rows and not absent:
        return Markup("")
    by_environment: dict[str, list[Row]] = {}
    for row in rows:
        by_environment.setdefault(row["environment"], []).append(row)
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("swarmgame.report", "."), autoescape=True, undefined=jinja2.StrictUndefined
    )
    page = environment.get_template("rollouts.html").render(
        environments=[(name, _samples(found, names)) for name, found in sorted(by_environment.items())],
        last=LAST_ROUNDS,
        absent=absent,
    )
    return Markup(page)


def _last_rows(directory: RunDirectory) -> tuple[list[Row], dict[str, str], list[str]]:
    rows: list[Row] = []
    names: dict[str, str] = {}
    absent: list[str] = []
    for index, files in directory.peers().items():
        state = ArchiveState.of(files.rollouts)
        if state.off:
            absent.append(f"peer {index}: the archive was switched off: {state.off}")
        for file in round_files(files.rollouts)[-LAST_ROUNDS:]:
            try:
                stored = load(file)
            except BadData as error:
                absent.append(str(error))
                continue
            names[stored.head["peer"]] = f"peer {index}"
            rows += [{"archive": index, **row} for row in stored.rows.to_pylist() if row["own"]]
    return rows, names, absent


def _samples(rows: Sequence[Row], names: dict[str, str]) -> list[Sample]:
    kinds = (("best", best(rows, len(rows))), ("worst", worst(rows, len(rows))), ("longest", longest(rows, len(rows))))
    return [
        Sample(kind, " · ".join(facts(row, names)[:-1]), " · ".join(use(row)), cut(prompt_text(row)), answer(row))
        for kind, found in kinds
        for row in _distinct(found)
    ]


def _distinct(rows: Sequence[Row]) -> list[Row]:
    """Return the first rollouts, of different questions."""
    first: dict[str, Row] = {}
    for row in rows:
        first.setdefault(row["question"], row)
    return list(first.values())[:EACH]
