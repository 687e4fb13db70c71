"""`swarmgame peer`: one peer without a display. `swarmgame run` starts several, and torchrun the ranks of one.

How it ends is recorded in `exit.json` as well, because torchrun does not return the exit code of its ranks.
"""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from swarmgame.cli.options import (
    Anchors,
    Announce,
    Game,
    Host,
    HttpPort,
    IdentityFile,
    InitialPeers,
    Overrides,
    P2pPort,
    Threads,
    found_in,
    load_game,
)


def peer(
    game: Game,
    directory: Annotated[
        Path, typer.Option("--directory", metavar="DIR", help="Folder for metrics, logs and checkpoints.")
    ],
    index: Annotated[int, typer.Option("--index", metavar="N", min=0, help="Number of this peer in the run.")] = 0,
    identity: IdentityFile = None,
    set_: Overrides = None,
    host: Host = "0.0.0.0",
    port: P2pPort = 0,
    http_port: HttpPort = 0,
    http_host: Annotated[
        str, typer.Option("--http-host", metavar="HOST", help="0.0.0.0 to be reached from other machines.")
    ] = "127.0.0.1",
    initial_peers: InitialPeers = None,
    anchors: Anchors = None,
    announce: Announce = None,
    rendezvous: Annotated[
        str,
        typer.Option(
            "--rendezvous",
            metavar="HOST:PORT",
            help="Where the peers of the backend TorchDistributed meet: peer 0 listens there.",
        ),
    ] = "",
    min_replicas: Annotated[
        int | None,
        typer.Option(
            "--min-replicas",
            metavar="N",
            min=1,
            help="Members to wait for, this peer included. Default: the manifest's peers.minReplicas.",
        ),
    ] = None,
    pre_running_deadline_seconds: Annotated[
        float | None,
        typer.Option(
            "--pre-running-deadline-seconds",
            metavar="S",
            min=1.0,
            help="Longest wait for them. Default: the manifest's preRunningDeadlineSeconds.",
        ),
    ] = None,
    chain_rpc: Annotated[
        str,
        typer.Option(
            "--chain-rpc",
            metavar="URL",
            help="The chain's node. Default: SWARMGAME_CHAIN_RPC, or the file that SWARMGAME_CHAIN_RPC_FILE names, "
            "which is the place for an address with a password.",
        ),
    ] = "",
    chain_gateway: Annotated[
        str,
        typer.Option(
            "--chain-gateway",
            metavar="URL",
            help="The gateway that sends this peer's messages to the chain. Default: SWARMGAME_CHAIN_GATEWAY.",
        ),
    ] = "",
    chain_id: Annotated[
        int,
        typer.Option(
            "--chain-id", metavar="N", min=0, help="The chain's id. Default: SWARMGAME_CHAIN_ID, or the manifest's."
        ),
    ] = 0,
    chain_contract: Annotated[
        str,
        typer.Option(
            "--chain-contract",
            metavar="ADDRESS",
            help="The coordinator. Default: SWARMGAME_CHAIN_CONTRACT, or the manifest's.",
        ),
    ] = "",
    threads: Threads = None,
) -> None:
    """Run one peer of a game, as `swarmgame run` and pods do.

    Its log has the address at which other peers reach it and the command that joins there; a pipe gets them as a JSON
    line on standard output too.

    Exit codes: 0 done, 64 bad usage, 65 bad data, 75 temporary, 77 refused, 78 bad config, 143 stopped.

    [bold]Examples[/bold]

      swarmgame peer game.yaml --directory peers/0 --port 31000

      torchrun --standalone --nproc-per-node=2 -m swarmgame peer game.yaml --directory peers/0
    """
    from swarmgame.launch.exit_record import recording_exit
    from swarmgame.launch.reachable import reachable
    from swarmgame.observability.run_directory import PeerDirectory

    files = PeerDirectory(directory)
    with recording_exit(files) as record:
        with found_in(game):
            manifest = load_game(game, set_ or ())
            from swarmgame.chain.endpoint import ChainEndpoint
            from swarmgame.runtime.options import PeerOptions, checked_addresses, checked_announcements, checked_ids
            from swarmgame.runtime.peer import run_peer
            from swarmgame.swarm.network_options import NetworkOptions

            network = NetworkOptions(
                identity=identity or files.key,
                host=host,
                port=port,
                announce=checked_announcements(announce or (), "--announce"),
                initial_peers=checked_addresses(initial_peers or (), "--initial-peer"),
                rendezvous=rendezvous,
            )
            options = PeerOptions(
                directory=directory,
                network=network,
                index=index,
                http_host=http_host,
                http_port=http_port,
                min_replicas=min_replicas,
                pre_running_deadline_seconds=pre_running_deadline_seconds,
                threads=threads or len(os.sched_getaffinity(0)),
                anchors=checked_ids(anchors or (), "--anchor"),
                chain=ChainEndpoint(chain_rpc, chain_gateway, chain_id, chain_contract),
            )

            def show(addresses: Sequence[str]) -> None:
                found = reachable(game, set_ or (), addresses)
                logging.getLogger(__name__).info(
                    "other peers reach this one at %s; %s", " ".join(found.addresses), found
                )
                if not sys.stdout.isatty():
                    typer.echo(json.dumps(found.as_json()))

            code = run_peer(manifest, game.parent, options, show)
        record(code)
    raise typer.Exit(int(code))
