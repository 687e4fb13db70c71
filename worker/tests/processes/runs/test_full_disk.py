"""A disk that is full, over quota, broken or read-only, at every place where a peer writes: the last checkpoint stays,
the peer ends with 75 and one sentence, and goes on exactly once there is room; files that a game does without are given
up and named. The peer runs in this process, over a swarm in memory.
"""

from __future__ import annotations

import errno
import json
import logging
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from failing_disk import NUMBERS, FailingDisk
from running import lines

from swarmgame.errors import ExitCode, NotWritable, exit_code_of
from swarmgame.runtime import peer as peer_module
from swarmgame.runtime.checkpoint import CheckpointStore
from swarmgame.runtime.options import PeerOptions
from swarmgame.runtime.peer import run_peer
from swarmgame.swarm.identity import Identity
from swarmgame.swarm.network_options import NetworkOptions
from swarmgame.swarm.transports.memory import MemoryHub
from swarmgame_api.load import load_manifest

ROUNDS = 4
GAME = """
apiVersion: swarmgame.dev/v1alpha1
kind: SwarmGame
metadata: {name: full}
spec:
  game:
    maxRounds: 4
    data: {use: "toys:ToyData"}
    rewards: {use: "toys:ToyRewards"}
    trainer: {use: "toys:ToyTrainer"}
    evaluation: {everyRounds: 2, questions: 3}
  peers: {replicas: 1}
  storage: {checkpoints: {everyRounds: 1, keep: 2}}
"""


@dataclass(frozen=True)
class Site:
    """A place where a peer writes.

    Args:
        name: pattern of its path in the peer's folder.
        after: writes that succeed before, so that there are checkpoints already.
        half: fails while bytes are written, not when the file is opened.
        played: rounds that a checkpoint holds when it fails.
    """

    name: str
    after: int = 0
    half: bool = False
    played: int = 0


ENDS = (
    Site(""),
    Site("/.peer.key*"),
    Site("/log.jsonl"),
    Site("/*http.json*"),
    Site("/*options.yaml*"),
    Site("/checkpoints"),
    Site("/metrics.jsonl", after=2, played=2),
    Site("/metrics.jsonl", after=2, half=True, played=2),
    Site("/checkpoints/.tmp-round-*/tensors.safetensors", after=2, half=True, played=2),
    Site("/checkpoints/.tmp-round-*/state.json", after=2, played=2),
    Site("/checkpoints/.tmp-round-*/manifest.json", after=3, half=True, played=3),
    Site("/checkpoints/round-00000003", played=2),
    Site("/checkpoints/*best.json", played=2),
)
GOES_ON = (Site("/rollouts"), Site("/rollouts/*", after=2), Site("/rollouts/.round-*", half=True))
FREE = {errno.ENOSPC, errno.EDQUOT, errno.EIO}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A game whose peer is alone in a swarm in memory; the logs of this process are as before afterwards."""
    (tmp_path / "game.yaml").write_text(GAME)
    hub = MemoryHub("full")
    keys = tmp_path / "peer" / "peer.key"
    monkeypatch.setattr(
        peer_module, "make_backend", lambda *given, **options: Reachable(hub.communication(Identity.load(keys).peer))
    )
    root = logging.getLogger()
    before, level = list(root.handlers), root.level
    yield tmp_path
    for handler in set(root.handlers) - set(before):
        root.removeHandler(handler)
        handler.close()
    root.setLevel(level)
    hub.close()


class Reachable:
    """A backend in memory, with the addresses of one that listens nowhere."""

    addresses = ()

    def __init__(self, backend: Any) -> None:
        self._backend = backend

    def __getattr__(self, name: str) -> Any:
        return getattr(self._backend, name)


def play(folder: Path) -> ExitCode:
    manifest = load_manifest(folder / "game.yaml", ())
    files = folder / "peer"
    options = PeerOptions(directory=files, network=NetworkOptions(files / "peer.key"), min_replicas=1)
    return run_peer(manifest, folder, options)


def disk_of(folder: Path, site: Site, number: int) -> FailingDisk:
    return FailingDisk(f"{folder}/peer{site.name}", number, after=site.after, half=site.half)


def rounds_of(folder: Path) -> list[int]:
    return [line["round"] for line in lines(folder / "peer" / "metrics.jsonl") if not line.get("lost")]


CASES = [
    *((ENDS[8], number) for number in NUMBERS),
    *((site, NUMBERS[place % len(NUMBERS)]) for place, site in enumerate(ENDS)),
]


@pytest.mark.parametrize(("site", "number"), CASES, ids=lambda each: str(getattr(each, "name", each)))
def test_the_peer_ends_with_75_and_a_sentence_and_goes_on_from_its_last_checkpoint(
    folder: Path, site: Site, number: int
) -> None:
    with disk_of(folder, site, number).installed() as disk, pytest.raises(NotWritable) as raised:
        play(folder)
    assert disk.refused
    assert exit_code_of(raised.value) == ExitCode.TEMPORARY
    message = str(raised.value)
    assert re.fullmatch(rf"{re.escape(str(folder))}/peer\S* cannot be written: [^\n]+; [^\n]+", message)
    assert bool(re.search(r"\([\d.]+ \w+ of [\d.]+ \w+ are free\)", message)) == (number in FREE)
    checkpoints = folder / "peer" / "checkpoints"
    saved = CheckpointStore(checkpoints).load_latest()
    assert (saved.next_round if saved is not None else 0) == site.played
    assert not list(checkpoints.glob(".tmp-round-*"))
    assert play(folder) is ExitCode.DONE
    assert rounds_of(folder) == list(range(ROUNDS))
    assert [path.name for path in checkpoints.glob(".*")] == []


@pytest.mark.parametrize("number", NUMBERS)
@pytest.mark.parametrize("site", GOES_ON, ids=lambda site: site.name)
def test_without_room_for_the_archive_the_game_goes_on_and_says_so_once(folder: Path, site: Site, number: int) -> None:
    with disk_of(folder, site, number).installed() as disk:
        assert play(folder) is ExitCode.DONE
    assert disk.refused
    assert rounds_of(folder) == list(range(ROUNDS))
    warnings = lines(folder / "peer" / "warnings.jsonl")
    assert [each["code"] for each in warnings].count("archive-off") == 1
    (found,) = [each for each in warnings if each["code"] == "archive-off"]
    assert "the archive of rollouts was switched off: " in found["text"]
    log = [json.loads(line) for line in (folder / "peer" / "log.jsonl").read_text().splitlines()]
    assert sum("archive of rollouts is switched off" in line["event"] for line in log) == 1
