"""The Dockerfiles: every file that they copy from the repository exists, and .dockerignore lets it through."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
ALLOWED = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}


@pytest.mark.parametrize("name", ["operator", "worker"])
def test_what_an_image_copies_is_in_its_build_context(name: str) -> None:
    text = (ROOT / "docker" / f"{name}.Dockerfile").read_text()
    copied = [
        source
        for line in re.findall(r"^COPY (?!--from)(.*)$", text, re.MULTILINE)
        for source in line.split()[:-1]
        if not source.startswith("--")
    ]
    assert copied
    assert [source for source in copied if source not in ALLOWED or not (ROOT / source).exists()] == []


def test_the_chains_image_has_the_anvil_of_the_contracts_tests() -> None:
    package = json.loads((ROOT / "contracts/package.json").read_text())
    (version,) = re.findall(r"^ARG ANVIL_VERSION=(.*)$", (ROOT / "docker/chain.Dockerfile").read_text(), re.MULTILINE)
    assert version == package["devDependencies"]["@foundry-rs/anvil"]
