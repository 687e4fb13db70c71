"""Write the table of attacks in docs/guide/security.md from `results/attacks.json` and, where it is there,
`results/influence.json`.

The text between the marks `attacks:begin` and `attacks:end` is replaced. `--check` fails when the page is not current.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from harness import result

ATTACKS = {
    "claims": "junk behind answers, with low claims",
    "copies": "copies of others' rollouts",
    "contrast": "junk behind answers",
    "length": "answers that fill the budget",
    "payload": "a payload before answers",
    "hole": "a payload that the scorer overlooks",
}
HOLE = "hole"
"""Another scorer, whose rewards do not compare with the control's."""
PAYLOADS = ("payload", HOLE)
PAGE = Path(__file__).parents[1] / "docs" / "guide" / "security.md"
BEGIN, END = "<!-- attacks:begin -->", "<!-- attacks:end -->"


def table() -> str:
    """Return the table: each attack, what was measured without its defence, and with it."""
    lines = ["| attack on four honest peers | measured | without the defence | with it |", "|---|---|---|---|"]
    rows = (*_rows(result("attacks") or {}), *influence_rows(result("influence")))
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)])


def _rows(found: Mapping[str, Any]) -> Iterator[tuple[str, ...]]:
    for row in found.get("attacks", ()):
        yield row["attack"], row["what"], _figure(row["without"]), _figure(row["defended"])


def influence_rows(found: Mapping[str, Any] | None) -> Iterator[tuple[str, ...]]:
    """Yield what four untrusted peers have changed in the learning of the honest ones."""
    if found is None:
        return
    arms = found["arms"]
    score = "held-out reward, {mean:.2f} ({low:.2f} to {high:.2f}) without them".format(**arms["none"]["held_out"])
    for name, what in ATTACKS.items():
        bounded, free = arms[f"{name}, defended"], arms[f"{name}, undefended"]
        attack = f"4 untrusted peers send {what}"
        if name != HOLE:
            yield attack, score, f"{free['held_out']['mean']:.2f}", f"{bounded['held_out']['mean']:.2f}"
        if name in PAYLOADS:
            shares = (f"{each['payload']['mean']:.1%}" for each in (free, bounded))
            yield attack, "own answers that carry the payload", *shares


def _figure(value: float | None) -> str:
    return "" if value is None else f"{value:,.0f}" if value == int(value) and value != 1 else f"{value:.2f}"


def written(page: str) -> str:
    """Return the page with the present table."""
    head, _, rest = page.partition(BEGIN)
    _, _, tail = rest.partition(END)
    return f"{head}{BEGIN}\n{table()}\n{END}{tail}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--check", action="store_true")
    page = PAGE.read_text(encoding="utf-8")
    if parser.parse_args().check:
        if written(page) != page:
            raise SystemExit(f"{PAGE} is not current: run python benchmarks/attack_table.py")
        return
    PAGE.write_text(written(page), encoding="utf-8")


if __name__ == "__main__":
    main()
