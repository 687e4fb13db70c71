"""`swarmgame join`: one more peer for a swarm that plays somewhere."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from swarmgame.cli.options import Announce, Game, InitialPeers, Overrides, Rounds, checked_addresses, found_in, say
from swarmgame.errors import BadUsage, InvalidManifest


def join(
    game: Game,
    initial_peers: InitialPeers = None,
    identity: Annotated[
        Path | None,
        typer.Option("--identity", metavar="FILE", help="Our key; made when missing. Default: in the folder."),
    ] = None,
    port: Annotated[
        int, typer.Option("--port", metavar="PORT", min=0, max=65535, help="For other peers; 0 takes any.")
    ] = 0,
    http_port: Annotated[
        int,
        typer.Option("--http-port", metavar="PORT", min=0, max=65535, help="For /status and /metrics; 0 takes any."),
    ] = 0,
    announce: Announce = None,
    directory: Annotated[
        Path | None, typer.Option("--directory", metavar="DIR", help="Default: runs/NAME-joined.", show_default=False)
    ] = None,
    rounds: Rounds = None,
    set_: Overrides = None,
    report: Annotated[
        bool, typer.Option("--report/--no-report", help="Write report.html and plots at the end.")
    ] = True,
) -> None:
    """Take part in somebody's swarm with one peer, and leave when you like.

    The game must be the same as theirs: its data, stages and seed decide which questions are asked. Ctrl-C leaves
    cleanly; joining again from the same folder goes on with the same identity and weights.

    [bold]Examples[/bold]

      swarmgame join game.yaml --initial-peer /ip4/192.0.2.7/tcp/31000/p2p/16Uiu2HAm…

      swarmgame join game.yaml --initial-peer … --port 31000 --announce /dns4/me.example.org/tcp/31000
    """
    from swarmgame_api.load import load_manifest

    overrides = (*(set_ or ()), *((f"spec.game.maxRounds={rounds}",) if rounds is not None else ()))
    manifest = load_manifest(game, overrides)
    with found_in(game):
        if manifest.spec.communication.backend == "TorchDistributed":
            expected = "Hivemind: the world of this backend is closed, and nobody joins it later"
            raise InvalidManifest("spec.communication.backend", "TorchDistributed", expected)
    addresses = checked_addresses(initial_peers, "--initial-peer")
    if not addresses and not manifest.spec.communication.initial_peers:
        raise BadUsage(
            "nobody to join: give --initial-peer with the address of a member, or communication.initialPeers in the manifest"
        )
    with found_in(game):
        from swarmgame.launch.join import JoinOptions, join_swarm

        code = join_swarm(
            JoinOptions(
                game=game,
                overrides=overrides,
                directory=directory or Path("runs") / f"{manifest.metadata.name}-joined",
                identity=identity,
                port=port,
                http_port=http_port,
                initial_peers=addresses,
                announce=tuple(announce or ()),
                report=report,
            ),
            say=say,
        )
    raise typer.Exit(int(code))
