"""The round from which all peers of a local run go on, where they were killed while they saved.

Peers save checkpoints after the same rounds, but not at the same moment. Were all killed in between, some have that of
a round and others only the one before. The latter would skip what the former have played, and the run would differ
from an uninterrupted one: so all go back to the newest round of which all have a checkpoint. A peer that ended by
itself (it stopped, failed or was given up) has left a record; then nothing is removed.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

from swarmgame.errors import writing
from swarmgame.observability.run_directory import PeerDirectory
from swarmgame.runtime.checkpoint_manifest import folder_of

BEHIND = 1
"""A peer that is so many rounds behind plays them with what the others have published: it is not waited for."""


def set_back(directories: Mapping[int, PeerDirectory], every_rounds: int) -> int | None:
    """Remove the checkpoints of rounds that some peers have not saved.

    Args:
        every_rounds: after how many rounds one is saved. Peers that were killed together are no further apart.

    Returns:
        The round from which all go on; None where nothing was removed: all have the same, or no round is common.

    Raises:
        NotWritable: a folder cannot be removed.
    """
    if any(directory.exit.exists() for directory in directories.values()):
        return None
    kept = {index: _rounds(directory.checkpoints) for index, directory in directories.items()}
    if not kept or not all(kept.values()):
        return None
    newest = [rounds[-1] for rounds in kept.values()]
    common = min(newest)
    if not BEHIND < max(newest) - common <= every_rounds or not all(common in rounds for rounds in kept.values()):
        return None
    for index, rounds in kept.items():
        for round in rounds:
            if round > common:
                path = directories[index].checkpoints / folder_of(round)
                with writing(path):
                    shutil.rmtree(path)
    return common


def _rounds(folder: Path) -> list[int]:
    names = (path.name.removeprefix("round-") for path in folder.glob("round-*") if path.is_dir())
    return sorted(int(name) for name in names if name.isdecimal() and name.isascii())
