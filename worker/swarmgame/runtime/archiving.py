"""The archive of rollouts of one peer, as its manifest wants it."""

from __future__ import annotations

from pathlib import Path

import torch

import swarmgame
from swarmgame.archive.writer import RolloutArchive
from swarmgame.game.state import PeerId
from swarmgame.observability.run_directory import PeerDirectory
from swarmgame.runtime.assembly import Components
from swarmgame.runtime.checkpoint import Checkpoint
from swarmgame.runtime.options import PeerOptions, run_id
from swarmgame_api.manifest import SwarmGame


def make_archive(
    manifest: SwarmGame,
    folder: Path,
    options: PeerOptions,
    saved: Checkpoint | None,
    components: Components,
    processes: int,
    peer: PeerId,
) -> RolloutArchive | None:
    """Return the archive of a peer; None where the manifest switches it off.

    Args:
        folder: of the manifest; a replay imports the author's modules from there.
        processes: of this peer.
    """
    spec = manifest.spec.observability.rollouts
    if not spec.enabled:
        return None
    facts = {
        "run": run_id(manifest),
        "peer": peer,
        "folder": str(folder.absolute()),
        # A sum depends on how many threads and processes share it, and on the device.
        "threads": options.threads,
        "processes": processes,
        "device": "cuda" if torch.cuda.is_available() else "cpu",
        "versions": {"swarmgame": swarmgame.__version__, "torch": torch.__version__},
    }
    return RolloutArchive(
        PeerDirectory(options.directory).rollouts,
        max_bytes=spec.max_bytes,
        first_round=saved.next_round if saved is not None else 0,
        facts=facts,
        last_update=components.trainer.last_update,
    )
