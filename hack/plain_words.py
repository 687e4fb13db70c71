"""Check that the packages are written in plain words: `python hack/plain_words.py [--list]`, part of `make lint`.

`[tool.swarmgame.plain-words]` in pyproject.toml lists words that stand for a term of the field ("said" for
"published"). Identifiers are split (`say_last`: say, last); comments, docstrings and strings count, tests do not. A
package fails when it has more than `limit` such words per 10,000; the message names files and words.
"""

from __future__ import annotations

import re
import sys
import tomllib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
SHOWN = 40
"""How many lines of files and words a failure prints."""


def words_of(text: str, allowed: re.Pattern[str]) -> Iterator[str]:
    """Yield the words of a source text in lower case, without those that are part of an allowed phrase."""
    for token in re.findall(r"[A-Za-z]+", allowed.sub(" ", text)):
        for part in re.findall(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])", token):
            if len(part) > 2:
                yield part.lower()


def count(folder: Path, listed: set[str], allowed: re.Pattern[str]) -> tuple[int, Counter[tuple[str, str]]]:
    """Count a folder's words, and its listed words by (file, word)."""
    total, found = 0, Counter[tuple[str, str]]()
    for file in sorted(folder.rglob("*.py")):
        if "tests" in file.parts:
            continue
        for word in words_of(file.read_text(encoding="utf-8"), allowed):
            total += 1
            if word in listed:
                found[str(file.relative_to(ROOT) if file.is_relative_to(ROOT) else file), word] += 1
    return total, found


def check(settings: dict[str, Any], root: Path) -> list[str]:
    """Return the report, one line per package and one for all; lines of packages above the limit begin with "error"."""
    listed, allowed = set(settings["words"]), re.compile("|".join(settings["allowed"]), re.IGNORECASE)
    counts = {name: count(root / name, listed, allowed) for name in settings["packages"]}
    counts["all packages"] = (
        sum(total for total, _ in counts.values()),
        sum((found for _, found in counts.values()), Counter[tuple[str, str]]()),
    )
    lines = []
    for name, (total, found) in counts.items():
        share = 1e4 * found.total() / max(total, 1)
        excess = share > settings["limit"]
        lines.append(f"{'error: ' if excess else ''}{name}: {share:.1f} per 10,000; at most {settings['limit']}")
        if name in settings["packages"] and (excess or "--list" in sys.argv):
            lines += [f"  {file}: {word} ({times})" for (file, word), times in found.most_common(SHOWN)]
    return lines


def main() -> None:
    """Print the report; exit with 1 when a package is above the limit."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    lines = check(project["tool"]["swarmgame"]["plain-words"], ROOT)
    print("\n".join(lines))
    sys.exit(any(line.startswith("error") for line in lines))


if __name__ == "__main__":
    main()
