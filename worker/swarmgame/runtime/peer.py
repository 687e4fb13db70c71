"""The peer process: one member of a swarm, from its manifest to its exit code. What a pod runs, and what the local
runner runs several of.

Every rank of a peer comes through here; rank 0 alone holds the connection, the sandbox, the endpoints and the files.
Invariant: whatever happens, the swarm is told that we leave, and the sandbox, the transport and the endpoints are
closed.
"""

from __future__ import annotations

import gc
import json
import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

import swarmgame
from swarmgame.chain.endpoint import ChainEndpoint, chain_errors, resolve_endpoint
from swarmgame.errors import BadData, ExitCode
from swarmgame.game.collected_log import CollectedLog
from swarmgame.game.components import ComponentContext
from swarmgame.game.manager import Ending, GameManager
from swarmgame.game.protocol import CommunicationManager
from swarmgame.game.ranks import Ranks
from swarmgame.game.report import Observer
from swarmgame.game.state import PeerId
from swarmgame.observability import logs
from swarmgame.observability.http import Endpoints
from swarmgame.observability.metrics import MetricsObserver, PeerMetrics
from swarmgame.observability.records import Checkpoints, MetricsFile
from swarmgame.observability.status import PeerStatus, Phase, StatusObserver
from swarmgame.runtime.assembly import (
    Components,
    ResolvedGame,
    assemble,
    code_of,
    context_of,
    progression_of,
    resolve_game,
    roles_of,
)
from swarmgame.runtime.checkpoint import Checkpoint, CheckpointStore
from swarmgame.runtime.connection import Connection, NetworkOptions, connection
from swarmgame.runtime.outbox import Outbox
from swarmgame.runtime.ranked import RankedCommunication, RankedRewards, agreed
from swarmgame.runtime.ranks import DistributedRanks, ranks_from_environment
from swarmgame.swarm.identity import Identity
from swarmgame_api.load import load_manifest
from swarmgame_api.manifest import SwarmGame

if TYPE_CHECKING:
    from swarmgame_chain.reporter import ChainReporter, ReporterStatus

logger = logging.getLogger(__name__)
CHAIN_SECONDS = 30.0
"""Longest wait, after the last round, for what we said to become final."""
CHAIN_SECONDS_STOPPED = 3.0


@dataclass(frozen=True)
class PeerOptions:
    """How one peer is started.

    Args:
        game: the manifest's file; modules of the author's own are looked for beside it.
        directory: where metrics, logs and checkpoints go; made when missing.
        identity: the key file; made when missing.
        index: our number in the run.
        overrides: `a.b=c`, over the manifest.
        port: p2p TCP port; 0 takes any.
        http_port, http_host: of the endpoints; port 0 takes any.
        initial_peers: multiaddresses to try first, beside the manifest's.
        announce: multiaddresses that others should use for us.
        rendezvous: HOST:PORT where the peers of a closed world (TorchDistributed) meet: peer 0 listens there.
        at_least: members to wait for before the first round, ourselves included.
        join_seconds: longest wait for them.
        threads: of torch, and of the libp2p daemon unless GOMAXPROCS says otherwise.
        linger_seconds: longest wait, at the end, for those who still need our words; None: the stage deadline.
        chain: where the chain is; what is left open comes from the environment and the manifest. Unused where the game
            has none.
    """

    game: Path
    directory: Path
    identity: Path
    index: int = 0
    overrides: tuple[str, ...] = ()
    port: int = 0
    http_port: int = 0
    http_host: str = "127.0.0.1"
    initial_peers: tuple[str, ...] = ()
    announce: tuple[str, ...] = ()
    rendezvous: str = ""
    at_least: int = 1
    join_seconds: float = 60.0
    threads: int = 1
    linger_seconds: float | None = None
    chain: ChainEndpoint = field(default_factory=ChainEndpoint)


def run_peer(options: PeerOptions) -> ExitCode:
    """Plays one peer's part of a game to its end.

    Returns:
        DONE after the last round, STOPPED after SIGTERM or SIGINT, TEMPORARY when left alone and the manifest says
        stop.

    Raises:
        InvalidManifest, BadData, Temporary, …: see `swarmgame.errors`.
    """
    manifest = load_manifest(options.game, options.overrides)
    folder = options.game.parent
    torch.set_num_threads(options.threads)
    # The libp2p daemon's too: many daemons on few cores, each with a scheduler for every core, take them from each
    # other (docs/LOG.md, 2026-11-26).
    os.environ.setdefault("GOMAXPROCS", str(options.threads))
    with _stop_signals() as stop, code_of(folder), ExitStack() as cleanup:  # a signal must not tear the clean-up
        ranks = ranks_from_environment()
        if isinstance(ranks, DistributedRanks):
            cleanup.enter_context(ranks)
        first = ranks.rank == 0
        options.directory.mkdir(parents=True, exist_ok=True)
        logs.configure(file=options.directory / "log.jsonl", index=options.index, rank=ranks.rank)
        identity = Identity.load_or_create(options.identity) if first else None
        peer: PeerId = ranks.broadcast(identity.peer.encode() if identity else None).decode()
        status = PeerStatus(
            index=options.index, max_rounds=manifest.spec.game.max_rounds, version=swarmgame.__version__
        )
        status.change(peer=peer)
        try:
            return _play(options, manifest, resolve_game(manifest, folder), ranks, peer, status, stop, cleanup)
        except BaseException as error:
            status.change(phase=Phase.FAILED, last_error=f"{type(error).__name__}: {error}")
            raise


def _play(
    options: PeerOptions,
    manifest: SwarmGame,
    blueprint: ResolvedGame,
    ranks: Ranks,
    peer: PeerId,
    status: PeerStatus,
    stop: threading.Event,
    cleanup: ExitStack,
) -> ExitCode:
    first = ranks.rank == 0
    metrics = PeerMetrics(peer=peer, index=options.index, version=swarmgame.__version__)
    if first:
        endpoints = Endpoints(status, metrics, options.http_host, options.http_port)
        cleanup.callback(endpoints.stop)
        port = endpoints.start()
        (options.directory / "http.json").write_text(json.dumps({"port": port, "peer": peer}))
    parts = _parts(manifest, blueprint, ranks, peer, options.directory)
    cleanup.callback(parts.close)
    saved = CheckpointStore(
        options.directory / "checkpoints", keep=manifest.spec.storage.checkpoints.keep
    ).load_latest()
    run = f"{manifest.metadata.name}-{manifest.spec.game.seed}"
    link = _link(options, manifest, peer, status, metrics) if first else None
    bootnodes: tuple[str, ...] = ()
    if link is not None:
        cleanup.callback(link.stop)
        from swarmgame.chain.reporter import start_reporter

        bootnodes = start_reporter(link)
    registered_only = manifest.spec.communication.admission == "Registered"
    backend = _backend(options, manifest, run, bootnodes, link if registered_only else None) if first else None
    outbox = Outbox(backend, run=run, keep_rounds=_kept_rounds(manifest)) if backend is not None else None
    communication = _communication(outbox, ranks, peer, run, stop)
    cleanup.callback(communication.leave)
    ledger = CollectedLog(manifest.spec.game.sharing.max_staleness_rounds)
    if saved is not None:
        _restore(saved, parts, outbox, ledger)
        logger.info("resuming at round %d from %s", saved.next_round, saved.path)
    observers = _record(options, manifest, parts, outbox, ledger, saved, status, metrics) if outbox is not None else []
    if link is not None:
        from swarmgame.chain.reporter import ChainObserver

        observers.append(ChainObserver(link))
    stopped = agreed(stop.is_set, ranks)
    status.change(phase=Phase.JOINING)
    if link is not None and registered_only and not link.wait_until_registered(options.join_seconds, stop.is_set):
        logger.warning(
            "our registration is not final yet, so that the others do not let us in: %s", link.status().problem
        )
    expected = tuple(saved.state["members"]) if saved is not None else ()
    communication.join(expect=expected, at_least=options.at_least, timeout_seconds=options.join_seconds)
    if backend is not None:
        status.change(addresses=backend.addresses)
    manager = GameManager(
        progression_of(manifest),
        data=parts.data,
        rewards=parts.rewards,
        trainer=parts.trainer,
        communication=communication,
        roles=roles_of(manifest),
        ledger=ledger,
        observers=observers,
        stopped=stopped,
    )
    # What is here now stays until the end: the collector need not walk it again each time that a quarter as much has
    # been added.
    gc.collect()
    gc.freeze()
    ending = manager.run(saved.next_round if saved is not None else None)
    status.stopping()
    if ending is Ending.FINISHED:
        longest = options.linger_seconds
        deadline = time.monotonic() + (
            manifest.spec.game.progression.stage_deadline_seconds if longest is None else longest
        )
        _linger(communication, manifest, agreed(lambda: stop.is_set() or time.monotonic() >= deadline, ranks))
        if link is not None:
            link.finish(CHAIN_SECONDS, stop.is_set)
        status.change(phase=Phase.FINISHED)
    elif link is not None:
        link.finish(CHAIN_SECONDS_STOPPED, lambda: False)
    return {Ending.FINISHED: ExitCode.DONE, Ending.STOPPED: ExitCode.STOPPED, Ending.ALONE: ExitCode.TEMPORARY}[ending]


def _parts(manifest: SwarmGame, blueprint: ResolvedGame, ranks: Ranks, peer: PeerId, directory: Path) -> Components:
    """The parts of this rank: the first holds the sandbox, the others take its word."""
    context: ComponentContext = context_of(
        manifest, peer=peer, ranks=ranks, device=_device(ranks), directory=directory.absolute()
    )
    if ranks.size == 1:
        return assemble(blueprint, context)
    if ranks.rank == 0:
        parts = assemble(blueprint, context)
        return replace(parts, rewards=RankedRewards(parts.rewards, ranks))
    return assemble(blueprint, context, rewards=RankedRewards(None, ranks))


def _device(ranks: Ranks) -> str:
    return f"cuda:{torch.cuda.current_device()}" if torch.cuda.is_available() else "cpu"


def _kept_rounds(manifest: SwarmGame) -> int:
    """How many rounds back others may still want our words."""
    return manifest.spec.game.sharing.max_staleness_rounds + 1


def _backend(
    options: PeerOptions, manifest: SwarmGame, run: str, bootnodes: tuple[str, ...], gate: ChainReporter | None
) -> Connection:
    where = NetworkOptions(
        index=options.index,
        identity=options.identity,
        port=options.port,
        initial_peers=(*bootnodes, *manifest.spec.communication.initial_peers, *options.initial_peers),
        announce=options.announce,
        rendezvous=options.rendezvous,
        join_seconds=options.join_seconds,
    )
    admission = gate.admits if gate is not None else lambda peer: True
    return connection(manifest, run, where, admission=admission, keep_rounds=_kept_rounds(manifest))


def _link(
    options: PeerOptions, manifest: SwarmGame, peer: PeerId, status: PeerStatus, metrics: PeerMetrics
) -> ChainReporter | None:
    """Our link to the game's chain; None where it has none."""
    place = resolve_endpoint(manifest, options.chain)
    if place is None:
        return None
    if manifest.spec.communication.admission == "Registered":
        status.change(registered=False)

    def changed(state: ReporterStatus) -> None:
        metrics.chain(waiting=state.waiting, final=state.final, rejected=state.rejected_count, dropped=state.dropped)
        status.change(chain=asdict(state), **({"registered": True} if state.registered else {}))

    with chain_errors(manifest.spec.coordination.mode):
        from swarmgame.chain.reporter import make_reporter

        return make_reporter(place, Identity.load(options.identity).secret, changed)


def _communication(
    outbox: Outbox | None, ranks: Ranks, peer: PeerId, run: str, stop: threading.Event
) -> CommunicationManager:
    """This rank's way to the swarm: rank 0 holds the connection, the others hear from it."""
    if ranks.size == 1 and outbox is not None:
        return outbox
    return RankedCommunication(outbox, ranks, peer=peer, run=run, interrupted=stop.is_set)


def _restore(saved: Checkpoint, parts: Components, outbox: Outbox | None, ledger: CollectedLog) -> None:
    try:
        parts.trainer.load_state_dict(saved.state["trainer"])
        parts.data.load_state_dict(saved.state["data"])
        ledger.load_state_dict(saved.state["ledger"])
        if outbox is not None:
            outbox.load_state_dict(saved.state["outbox"])
    except (KeyError, ValueError, RuntimeError, TypeError) as error:
        advice = "it was made by another game or model: remove the run's folder, or give the run another name"
        raise BadData(f"{saved.path}: the checkpoint does not fit this manifest ({error}); {advice}") from error


def _record(
    options: PeerOptions,
    manifest: SwarmGame,
    parts: Components,
    outbox: Outbox,
    ledger: CollectedLog,
    saved: Checkpoint | None,
    status: PeerStatus,
    metrics: PeerMetrics,
) -> list[Observer]:
    """Metrics before checkpoints: a line may be written twice by a crash between the two, and the resume forgets it;
    never lost.
    """
    checkpoints = manifest.spec.storage.checkpoints

    def everything() -> Mapping[str, Any]:
        return {
            "trainer": parts.trainer.state_dict(),
            "data": parts.data.state_dict(),
            "outbox": outbox.state_dict(),
            "ledger": ledger.state_dict(),
            "members": [member.peer for member in outbox.membership()],
        }

    observer = MetricsObserver(metrics)

    def wrote(next_round: int, seconds: float) -> None:
        status.change(checkpoint=next_round)
        metrics["checkpoint_seconds"].observe(seconds)

    return [
        MetricsFile(
            options.directory / "metrics.jsonl",
            index=options.index,
            first_round=saved.next_round if saved is not None else 0,
        ),
        Checkpoints(
            CheckpointStore(options.directory / "checkpoints", keep=checkpoints.keep),
            every_rounds=checkpoints.every_rounds,
            state=everything,
            saved=wrote,
        ),
        observer,
        StatusObserver(status),
    ]


def _linger(communication: CommunicationManager, manifest: SwarmGame, over: Callable[[], bool]) -> None:
    """Stays until every live member has played its last round: a slower one may still need what we said."""
    last = manifest.spec.game.max_rounds
    communication.announce_progress(last, 0)
    while not over():
        if all(member.round >= last for member in communication.membership() if member.peer != communication.peer):
            return
        time.sleep(0.1)


@contextmanager
def _stop_signals() -> Iterator[threading.Event]:
    """An event that SIGTERM and SIGINT set; the loop looks at it between steps. Off the main thread signals stay as
    they are.
    """
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = {number: signal.signal(number, lambda *_: stop.set()) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
