"""The manifest of a checkpoint: its format version, the next round, and hashes of the files and of itself.

Read without torch: a pod looks at it before it starts a peer. A manifest that is not whole is an error for every
reader.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from swarmgame.errors import BadData

FORMAT_VERSION = 3
"""Of the state and of how it is stored. Raise it with every change that an older checkpoint does not fit."""
MANIFEST = "manifest.json"
_WITHOUT_OWN_HASH = (1, 2)
"""Format versions of which the manifest has no hash of itself."""
_MOST_BYTES = 4096
"""A manifest has some 500. What is larger could be nested deeper than the parser's stack."""


class OtherVersion(BadData):
    """A checkpoint of another format version."""


def make_manifest(next_round: int, files: Mapping[str, bytes]) -> dict[str, Any]:
    """Return the manifest of a checkpoint with these files."""
    return sealed(
        {
            "format": FORMAT_VERSION,
            "nextRound": next_round,
            "files": {
                name: {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)} for name, data in files.items()
            },
        }
    )


def sealed(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """Return a manifest with the hash of all that is in it."""
    content = {name: value for name, value in manifest.items() if name != "sha256"}
    return {**content, "sha256": hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()}


def folder_of(next_round: int) -> str:
    """Return the name of a checkpoint's folder."""
    return f"round-{next_round:08d}"


def read_manifest(path: Path) -> Mapping[str, Any]:
    """Return the manifest of a checkpoint's folder that this release wrote.

    Raises:
        BadData: as `intact_manifest`.
        OtherVersion: another release wrote it.
    """
    manifest = intact_manifest(path)
    if (version := manifest["format"]) != FORMAT_VERSION:
        raise OtherVersion(other_version(path, f"is of format version {version}", f"version {FORMAT_VERSION}"))
    return manifest


def intact_manifest(path: Path) -> Mapping[str, Any]:
    """Return the manifest of a checkpoint's folder, whichever release wrote it.

    Raises:
        BadData: it is missing or damaged, or the folder was renamed.
    """
    try:
        text = (path / MANIFEST).read_bytes()
        manifest = json.loads(text if len(text) <= _MOST_BYTES else b"too long")
        version, next_round = int(manifest["format"]), manifest.get("nextRound")
        intact = version in _WITHOUT_OWN_HASH if "sha256" not in manifest else manifest == sealed(manifest)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise BadData(f"{path}: no usable {MANIFEST} ({error})") from error
    if not intact:
        raise BadData(f"{path / MANIFEST}: the content does not match its own hash")
    if not isinstance(next_round, int) or path.name != folder_of(next_round):
        raise BadData(f"{path}: the folder was renamed; its {MANIFEST} is of round {next_round}")
    return {**manifest, "format": version}


def other_version(path: Path, found: str, written: str) -> str:
    """Return what to do about a checkpoint of another release, as a sentence."""
    return (
        f"{path} {found}; this release writes {written}: start afresh with --fresh, or go on with the release that "
        "wrote it"
    )
