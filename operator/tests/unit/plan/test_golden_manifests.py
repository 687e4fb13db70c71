"""The manifests that a game becomes, for a person to review: two games in full, the others as differences from the
quickstart.

`pytest operator/tests/unit/plan/test_golden_manifests.py --update-golden` writes the files anew.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from golden_games import GAMES, difference, written_manifests

GOLDEN = Path(__file__).parents[2] / "golden"
IN_FULL = ("quickstart", "gpu-hub-claims-modules")


class _Readable(yaml.SafeDumper):
    """Writes texts of several lines as blocks, and no aliases."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


_Readable.add_representer(
    str,
    lambda dumper, text: dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None),
)


def golden_text(name: str) -> str:
    manifests = written_manifests(GAMES[name])
    documents = manifests if name in IN_FULL else [difference(written_manifests(GAMES["quickstart"]), manifests)]
    return yaml.dump_all(documents, Dumper=_Readable, sort_keys=False, width=120, allow_unicode=True)


@pytest.mark.parametrize("name", GAMES)
def test_a_game_becomes_the_reviewed_manifests(name: str, request: pytest.FixtureRequest) -> None:
    text = golden_text(name)
    golden = GOLDEN / (f"{name}.yaml" if name in IN_FULL else f"{name}.changes.yaml")
    if request.config.getoption("--update-golden", default=False):
        golden.write_text(text, encoding="utf-8")
    assert golden.exists(), "no golden file; run with --update-golden and review it"
    assert text == golden.read_text(encoding="utf-8")


def test_every_golden_file_has_its_game() -> None:
    assert {path.name.split(".")[0] for path in GOLDEN.glob("*.yaml")} == set(GAMES)
