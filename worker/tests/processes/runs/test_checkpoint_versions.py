"""A checkpoint of another version ends the peer with 65 and one sentence."""

from __future__ import annotations

import base64
import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgpack
import pytest
import zstandard
from running import EXAMPLES, newest_checkpoint, run_to_end

from swarmgame.runtime.checkpoint_manifest import FORMAT_VERSION, sealed
from swarmgame.swarm import codec

pytestmark = pytest.mark.timeout(600)
GAME = EXAMPLES / "03-digits" / "game.yaml"


def set_format_version(checkpoint: Path) -> None:
    manifest = checkpoint / "manifest.json"
    manifest.write_text(json.dumps(sealed(json.loads(manifest.read_text()) | {"format": 99})))


def set_codec_version(checkpoint: Path) -> None:
    """Write the contributions of a checkpoint again as another version of the wire format, with valid hashes."""
    state = checkpoint / "state.json"
    tree = json.loads(state.read_text(), object_hook=_raise_schema)
    state.write_text(json.dumps(tree))
    manifest = checkpoint / "manifest.json"
    content = json.loads(manifest.read_text())
    data = state.read_bytes()
    content["files"]["state.json"] = {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
    manifest.write_text(json.dumps(sealed(content)))


def _raise_schema(value: dict[str, Any]) -> dict[str, Any]:
    """Raise the version in every shard: a byte that tells whether it is compressed, then the shard."""
    if value.keys() != {"$bytes"}:
        return value
    shard = base64.b64decode(value["$bytes"])
    plain = zstandard.ZstdDecompressor().decompress(shard[1:]) if shard[0] else shard[1:]
    before, after = (msgpack.packb("schema") + msgpack.packb(number) for number in (codec.SCHEMA, codec.SCHEMA + 1))
    assert plain.count(before) == 1
    return {"$bytes": base64.b64encode(b"\0" + plain.replace(before, after)).decode()}


RUN = ("run", GAME, "--peers=1", "--no-report", "--set=storage.checkpoints.everyRounds=1")


@pytest.fixture(scope="module")
def played(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of runs, with one of two rounds. Copy it."""
    runs = tmp_path_factory.mktemp("runs")
    run_to_end(*RUN, "--rounds=2", "--runs", runs)
    return runs


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (set_format_version, f"is of format version 99; this release writes version {FORMAT_VERSION}: start afresh"),
        (set_codec_version, "holds contributions of another version of the wire format"),
    ],
)
def test_a_checkpoint_of_another_version_ends_with_65_and_says_what_to_do(
    played: Path, tmp_path: Path, change: Callable[[Path], None], expected: str
) -> None:
    runs = tmp_path / "runs"
    shutil.copytree(played, runs)
    checkpoint = newest_checkpoint(runs / "digits", 0)
    change(checkpoint)
    done = run_to_end(*RUN, "--rounds=3", "--runs", runs, expect=65)
    assert f"{checkpoint} {expected}" in done.stderr
    assert "start afresh with --fresh, or go on with the release that wrote it" in done.stderr
    assert "Traceback" not in done.stderr
    run_to_end(*RUN, "--rounds=1", "--fresh", "--runs", runs)
