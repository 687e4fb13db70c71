"""The reference page and the package's independence."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from swarmgame_api.reference import main, reference
from swarmgame_api.rules import objects
from swarmgame_api.status import SwarmGameStatus

ROOT = Path(__file__).parents[3]


def test_the_reference_is_current() -> None:
    page = (ROOT / "docs" / "reference" / "manifest.md").read_text(encoding="utf-8")
    assert page == reference(), "run python -m swarmgame_api.reference at the root of the repository"


def test_the_reference_is_written_to_the_given_file(tmp_path: Path) -> None:
    assert main([str(tmp_path / "page.md")]) == 0
    assert (tmp_path / "page.md").read_text(encoding="utf-8") == reference()
    assert main([str(tmp_path / "nowhere" / "page.md")]) == 64


def test_every_field_of_manifest_and_status_is_described_in_a_sentence() -> None:
    for path, model in [*objects(), *objects(SwarmGameStatus, "status")]:
        for name, field in model.model_fields.items():
            assert field.description, f"{path}.{name}"
            assert field.description.rstrip().endswith((".", "…")), f"{path}.{name}"


def test_the_package_needs_only_pydantic_and_yaml() -> None:
    program = (
        "import sys, json, swarmgame_api, swarmgame_api.rules, swarmgame_api.reference, swarmgame_api.status\n"
        "print(json.dumps(sorted({name.split('.')[0] for name in sys.modules} - set(sys.stdlib_module_names))))"
    )
    done = subprocess.run(
        [sys.executable, "-I", "-c", f"import sys; sys.path.insert(0, {str(ROOT / 'crds')!r})\n{program}"],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    third_party = {name for name in json.loads(done.stdout) if not name.startswith(("_", "sitecustomize", "cython"))}
    assert third_party <= {
        "swarmgame_api",
        "pydantic",
        "pydantic_core",
        "yaml",
        "annotated_types",
        "typing_extensions",
        "typing_inspection",
    }
