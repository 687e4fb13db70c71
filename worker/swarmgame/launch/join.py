"""Join: one peer in this process, for a swarm that plays elsewhere, with the display of a local run.

The peer is `swarmgame.runtime.peer`; here are its folder, its display and its report. Invariant: a folder belongs to
one game and one process at a time, as a run's does.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from swarmgame.errors import BadUsage, ExitCode, writing
from swarmgame.launch.display import Notify, RunDisplay
from swarmgame.launch.reachable import reachable
from swarmgame.launch.results import export_hint, place_of, record_end, report_results
from swarmgame.observability.run_directory import RunDirectory, RunProgress
from swarmgame.runtime.assembly import check, prepare
from swarmgame.runtime.options import PeerOptions
from swarmgame.runtime.peer import run_peer
from swarmgame.swarm.identity import Identity, split_address
from swarmgame.swarm.network_options import NetworkOptions
from swarmgame_api.load import manifest_data
from swarmgame_api.manifest import SwarmGame


@dataclass(frozen=True)
class JoinOptions:
    """The options of `swarmgame join`.

    Args:
        game: the manifest's file, as the user named it.
        overrides: of the manifest.
        directory: a run directory with one peer.
        peer: its directory is the first peer's in `directory`.
        report: whether to write plots and report at the end.
    """

    game: Path
    overrides: Sequence[str]
    directory: RunDirectory
    peer: PeerOptions
    report: bool = True


def join_swarm(manifest: SwarmGame, options: JoinOptions, *, notify: Notify) -> ExitCode:
    """Join a swarm, play until the end of the game or a signal, and leave.

    Raises:
        BadUsage: every initial peer has the key of this peer.
        InvalidManifest: nothing was started, and nothing was written.
        Temporary: no member could be reached, or another process holds the folder.
    """
    began = time.monotonic()
    folder = options.game.absolute().parent
    for warning in check(manifest, folder).warnings:
        notify(f"warning: {warning}")
    directory, max_rounds = options.directory, manifest.spec.game.max_rounds
    with directory.locked():
        refuse_own_address(options.peer.network)
        directory.refuse_other_game(manifest_data(manifest))
        directory.keep_manifest(manifest_data(manifest))
        prepare(manifest, folder)
        directory.keep_source(folder)
        files = directory.peer(0)
        with writing(files.root):
            files.root.mkdir(parents=True, exist_ok=True)
        title = f"{manifest.metadata.name}: one more peer"
        display = RunDisplay(title, max_rounds, {0: files}, warnings=False)
        state = "failed"

        def show(addresses: Sequence[str]) -> None:
            display.print_event(reachable(options.game, options.overrides, addresses))

        with display:
            try:
                with display.refreshing():
                    code = run_peer(manifest, folder, options.peer, show)
                state = "finished" if code is ExitCode.DONE else "stopped"
            finally:
                display.refresh({0: state}, now=True)
        before = directory.progress()
        seconds = time.monotonic() - began + (before.seconds if before is not None else 0.0)
        record_end(directory, RunProgress(1, max_rounds, finished=code is ExitCode.DONE, seconds=seconds), notify)
        if display.peers[0].rounds:
            report_results(directory, notify, page=options.report)
            notify(place_of(directory))
        if code is ExitCode.DONE:
            notify(export_hint(manifest, str(directory.root)))
    return code


def refuse_own_address(network: NetworkOptions) -> None:
    """Refuse to join by addresses that all have this peer's own id: it would wait for a peer that it takes for itself.

    Raises:
        BadUsage: the key of the peer at the address was copied here.
    """
    if not network.identity.exists() or not network.initial_peers:
        return
    own = Identity.load(network.identity).peer
    if {split_address(address)[1] for address in network.initial_peers} == {own}:
        raise BadUsage(
            f"--initial-peer {network.initial_peers[0]} has the id of this peer's own key, {network.identity}: two "
            "processes with one key count as one peer. Give this one a key of its own: --identity FILE, or another "
            "--directory"
        )
