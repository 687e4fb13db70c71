"""`swarmgame peer`: one peer, without a person looking on. What a pod runs, and what `swarmgame run` starts several of.

Every option can come from the environment. How it ended is noted in `exit.json`, because torchrun, where a peer has
several ranks, hides the exit code of its ranks. Invariant: of several ranks the first word counts.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Annotated

import typer

from swarmgame.cli.options import Announce, Game, InitialPeers, Overrides, checked_addresses, found_in
from swarmgame.errors import ExitCode, exit_code_of
from swarmgame_api.load import load_manifest


def peer(
    game: Game,
    directory: Annotated[
        Path,
        typer.Option(
            "--directory", metavar="DIR", envvar="SWARMGAME_DIRECTORY", help="Metrics, logs and checkpoints go here."
        ),
    ],
    index: Annotated[
        int,
        typer.Option(
            "--index",
            metavar="N",
            min=0,
            envvar=["SWARMGAME_INDEX", "JOB_COMPLETION_INDEX"],
            help="Our number in this run.",
        ),
    ] = 0,
    identity: Annotated[
        Path | None,
        typer.Option(
            "--identity",
            metavar="FILE",
            envvar="SWARMGAME_IDENTITY",
            help="Our key; made when missing. Default: DIR/peer.key.",
        ),
    ] = None,
    set_: Overrides = None,
    port: Annotated[
        int,
        typer.Option(
            "--port", metavar="PORT", min=0, max=65535, envvar="SWARMGAME_PORT", help="For other peers; 0 takes any."
        ),
    ] = 0,
    http_port: Annotated[
        int,
        typer.Option(
            "--http-port",
            metavar="PORT",
            min=0,
            max=65535,
            envvar="SWARMGAME_HTTP_PORT",
            help="For /healthz, /status, …; 0 takes any.",
        ),
    ] = 0,
    http_host: Annotated[
        str,
        typer.Option(
            "--http-host", metavar="HOST", envvar="SWARMGAME_HTTP_HOST", help="0.0.0.0 to be seen from elsewhere."
        ),
    ] = "127.0.0.1",
    initial_peers: InitialPeers = None,
    announce: Announce = None,
    rendezvous: Annotated[
        str,
        typer.Option(
            "--rendezvous",
            metavar="HOST:PORT",
            envvar="SWARMGAME_RENDEZVOUS",
            help="Where the peers of a closed world (backend TorchDistributed) meet: peer 0 listens there.",
        ),
    ] = "",
    at_least: Annotated[
        int,
        typer.Option(
            "--at-least",
            metavar="N",
            min=1,
            envvar="SWARMGAME_AT_LEAST",
            help="Members to wait for, ourselves included.",
        ),
    ] = 1,
    join_seconds: Annotated[
        float,
        typer.Option(
            "--join-seconds", metavar="S", min=1.0, envvar="SWARMGAME_JOIN_SECONDS", help="Longest wait for them."
        ),
    ] = 60.0,
    chain_rpc: Annotated[
        str,
        typer.Option(
            "--chain-rpc",
            metavar="URL",
            envvar="SWARMGAME_CHAIN_RPC",
            help="The chain's node. One with a password belongs in the file that SWARMGAME_CHAIN_RPC_FILE names.",
        ),
    ] = "",
    chain_gateway: Annotated[
        str,
        typer.Option(
            "--chain-gateway",
            metavar="URL",
            envvar="SWARMGAME_CHAIN_GATEWAY",
            help="The gateway, which carries our words.",
        ),
    ] = "",
    chain_id: Annotated[
        int,
        typer.Option(
            "--chain-id", metavar="N", min=0, envvar="SWARMGAME_CHAIN_ID", help="Its id; 0: as the manifest says."
        ),
    ] = 0,
    chain_contract: Annotated[
        str,
        typer.Option(
            "--chain-contract",
            metavar="ADDRESS",
            envvar="SWARMGAME_CHAIN_CONTRACT",
            help="The coordinator; else the manifest's.",
        ),
    ] = "",
    threads: Annotated[
        int | None,
        typer.Option(
            "--threads",
            metavar="N",
            min=1,
            envvar="OMP_NUM_THREADS",
            help="Of torch and the libp2p daemon. Default: all cores.",
        ),
    ] = None,
) -> None:
    """Play one peer's part of a game, as a pod or `swarmgame run` does.

    Exit codes: 0 done, 64 bad usage, 65 bad data, 75 temporary, 77 refused, 78 bad config, 143 stopped.

    [bold]Examples[/bold]

      swarmgame peer game.yaml --directory peers/0 --port 31000

      torchrun --standalone --nproc-per-node=2 -m swarmgame peer game.yaml --directory peers/0
    """
    _follow_the_runner()
    directory.mkdir(parents=True, exist_ok=True)
    if os.environ.get("LOCAL_RANK", "0") == "0":
        _exit_file(directory).unlink(missing_ok=True)
    try:
        with found_in(game):
            load_manifest(game, tuple(set_ or ()))  # most mistakes are found before torch is loaded
            from swarmgame.chain.endpoint import ChainEndpoint
            from swarmgame.runtime.peer import PeerOptions, run_peer

            code = run_peer(
                PeerOptions(
                    game=game,
                    directory=directory,
                    identity=identity or directory / "peer.key",
                    index=index,
                    overrides=tuple(set_ or ()),
                    port=port,
                    http_port=http_port,
                    http_host=http_host,
                    initial_peers=checked_addresses(initial_peers, "--initial-peer"),
                    announce=tuple(announce or ()),
                    rendezvous=rendezvous,
                    at_least=at_least,
                    join_seconds=join_seconds,
                    threads=threads or len(os.sched_getaffinity(0)),
                    chain=ChainEndpoint(chain_rpc, chain_gateway, chain_id, chain_contract),
                )
            )
    except BaseException as error:
        # An error of ours has a traceback to show instead of a message.
        code = ExitCode.STOPPED if isinstance(error, KeyboardInterrupt) else exit_code_of(error)
        _note(directory, code, "" if code in {ExitCode.INTERNAL, ExitCode.STOPPED} else str(error))
        raise
    if code is not ExitCode.DONE:
        _note(directory, code, "")
    raise typer.Exit(int(code))


def _follow_the_runner() -> None:
    """A rank's parent is torchrun, not the runner, and would outlive it."""
    if os.environ.get("SWARMGAME_DIE_WITH_PARENT") == "1":
        from swarmgame.launch.supervisor import die_with_parent

        die_with_parent()


def _exit_file(directory: Path) -> Path:
    return directory / "exit.json"


def _note(directory: Path, code: ExitCode, message: str) -> None:
    try:
        with _exit_file(directory).open("x", encoding="utf-8") as file:
            file.write(json.dumps({"code": int(code), "message": message}) + "\n")
    except FileExistsError:
        return
