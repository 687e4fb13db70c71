"""`swarmgame join`: one more peer for a swarm that plays elsewhere."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from swarmgame.cli.options import (
    Anchors,
    Announce,
    Game,
    HttpPort,
    IdentityFile,
    InitialPeers,
    Overrides,
    P2pPort,
    Report,
    Rounds,
    Threads,
    found_in,
    load_game,
    print_message,
)
from swarmgame.errors import BadUsage, InvalidManifest


def join(
    game: Game,
    initial_peers: InitialPeers = None,
    anchors: Anchors = None,
    identity: IdentityFile = None,
    port: P2pPort = 0,
    http_port: HttpPort = 0,
    announce: Announce = None,
    directory: Annotated[
        Path | None, typer.Option("--directory", metavar="DIR", help="Default: runs/NAME-joined.", show_default=False)
    ] = None,
    rounds: Rounds = None,
    set_: Overrides = None,
    threads: Threads = None,
    report: Report = True,
) -> None:
    """Join a running swarm with one peer, and leave at any time.

    The game must be the same as the swarm's: its data, stages and seed decide which questions are asked. Ctrl-C leaves
    cleanly; joining again from the same folder goes on with the same identity and weights.

    [bold]Examples[/bold]

      swarmgame join game.yaml --initial-peer /ip4/192.0.2.7/tcp/31000/p2p/16Uiu2HAm…

      swarmgame join game.yaml --initial-peer … --port 31000 --announce /dns4/me.example.org/tcp/31000

      swarmgame join game.yaml --initial-peer … --threads 1   [dim]beside other peers on this machine[/dim]
    """
    overrides = (*(set_ or ()), *((f"spec.game.maxRounds={rounds}",) if rounds is not None else ()))
    manifest = load_game(game, overrides)
    with found_in(game):
        if manifest.spec.communication.backend == "TorchDistributed":
            expected = "Hivemind: a swarm of this backend has a fixed set of peers, and no other can join it"
            raise InvalidManifest("spec.communication.backend", "TorchDistributed", expected)
    from swarmgame.runtime.options import PeerOptions, checked_addresses, checked_announcements, checked_ids
    from swarmgame.swarm.network_options import NetworkOptions, host_for_peers

    addresses = checked_addresses(initial_peers or (), "--initial-peer")
    if not addresses and not manifest.spec.communication.initial_peers:
        raise BadUsage(
            "no peer to join: give --initial-peer with the address of a member, or communication.initialPeers in the "
            "manifest"
        )
    with found_in(game):
        from swarmgame.launch.join import JoinOptions, join_swarm
        from swarmgame.launch.local import JOIN_SECONDS
        from swarmgame.observability.run_directory import RunDirectory

        run = RunDirectory((directory or Path("runs") / f"{manifest.metadata.name}-joined").absolute())
        files = run.peer(0)
        peer = PeerOptions(
            directory=files.root,
            network=NetworkOptions(
                identity=identity or files.key,
                host=host_for_peers((*addresses, *manifest.spec.communication.initial_peers)),
                port=port,
                announce=checked_announcements(announce or (), "--announce"),
                initial_peers=addresses,
            ),
            http_port=http_port,
            min_replicas=2,
            pre_running_deadline_seconds=JOIN_SECONDS,
            threads=threads or len(os.sched_getaffinity(0)),
            anchors=checked_ids(anchors or (), "--anchor"),
        )
        options = JoinOptions(game, overrides, run, peer, report=report)
        code = join_swarm(manifest, options, notify=print_message)
    raise typer.Exit(int(code))
