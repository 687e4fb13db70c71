"""The peer process: one member of a swarm, from its manifest to its exit code.

A pod runs one, `swarmgame run` several. Every rank of a peer comes through here; rank 0 alone holds the connection,
the sandbox, the endpoints and the files. Invariant: however the game ends, the peer leaves the swarm, and the sandbox,
the transport and the endpoints are closed.
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
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

import swarmgame
from swarmgame.chain.endpoint import chain_errors, resolve_endpoint
from swarmgame.errors import BadData, ExitCode, InvalidManifest, SwarmGameError, not_writable
from swarmgame.game.collected_log import CollectedLog
from swarmgame.game.manager import GameManager, RunResult
from swarmgame.game.protocol import CommunicationManager
from swarmgame.game.ranks import Ranks
from swarmgame.game.report import Observer
from swarmgame.game.state import PeerId
from swarmgame.observability.http import Endpoints
from swarmgame.observability.metrics import PeerMetrics
from swarmgame.observability.run_directory import PeerDirectory
from swarmgame.observability.status import PeerStatus, Phase
from swarmgame.runtime.archiving import make_archive
from swarmgame.runtime.assembly import (
    Components,
    ResolvedGame,
    assemble,
    context_of,
    local_modules,
    progression_of,
    resolve_game,
    roles_of,
)
from swarmgame.runtime.checkpoint import Checkpoint, CheckpointStore, other_version
from swarmgame.runtime.communication import Backend, PeerCommunication, kept_rounds, make_backend
from swarmgame.runtime.failure import PeerFailure, failure_of, packages_of
from swarmgame.runtime.observers import diagnostics, export_writers, record_keepers, trackers
from swarmgame.runtime.options import PeerOptions, run_id
from swarmgame.runtime.ranks import DistributedRanks, RankedRewards, agreed, ranks_from_environment
from swarmgame.runtime.weights import weights_hash
from swarmgame.swarm import codec
from swarmgame.swarm.identity import Identity
from swarmgame_api.manifest import SwarmGame
from swarmgame_common import logs

if TYPE_CHECKING:
    from swarmgame_chain.reporter import ChainReporter, ReporterStatus

logger = logging.getLogger(__name__)
CHAIN_SECONDS = 30.0
"""Longest wait, after the last round, until the messages to the chain are final."""
CHAIN_SECONDS_STOPPED = 3.0
EXIT_CODES = {
    RunResult.FINISHED: ExitCode.DONE,
    RunResult.STOPPED: ExitCode.STOPPED,
    RunResult.ISOLATED: ExitCode.TEMPORARY,
}


def run_peer(manifest: SwarmGame, folder: Path, options: PeerOptions) -> ExitCode:
    """Run one peer until the end of the game.

    Args:
        manifest: checked.
        folder: of the manifest; the author's own modules are imported from there.

    Returns:
        DONE after the last round, STOPPED after SIGTERM or SIGINT, TEMPORARY when no other peer is left and the
        manifest says to stop.

    Raises:
        InvalidManifest, BadData, Temporary, …: see `swarmgame.errors`.
        PeerFailure: an exception that no rule foresees, of the game's own code or of this project.
    """
    torch.set_num_threads(options.threads)
    # The libp2p daemon's too: many daemons on few cores, each with a scheduler for every core, take them from each
    # other (docs/decisions/0012-daemon-threads.md).
    os.environ.setdefault("GOMAXPROCS", str(options.threads))
    with _stop_signals() as stop, local_modules(folder), ExitStack() as cleanup:  # no signal interrupts the clean-up
        ranks = ranks_from_environment()
        if isinstance(ranks, DistributedRanks):
            cleanup.enter_context(ranks)
        options.directory.mkdir(parents=True, exist_ok=True)
        logs.configure(
            file=PeerDirectory(options.directory).log, limit_repeats=True, index=options.index, rank=ranks.rank
        )
        identity = Identity.load_or_create(options.network.identity) if ranks.rank == 0 else None
        peer: PeerId = ranks.broadcast(identity.peer.encode() if identity else None).decode()
        status = PeerStatus(
            index=options.index, max_rounds=manifest.spec.game.max_rounds, version=swarmgame.__version__
        )
        status.change(peer=peer)
        try:
            return _play(manifest, folder, resolve_game(manifest, folder), options, ranks, peer, status, stop, cleanup)
        except (SwarmGameError, InvalidManifest) as error:
            status.change(phase=Phase.FAILED, last_error=str(error))
            raise
        except (Exception, SystemExit) as error:  # game code may call sys.exit, which would look like a finished game
            failure = failure_of(error, round=status.current.round, packages=packages_of(manifest))
            status.change(phase=Phase.FAILED, last_error=str(failure))
            known = None if failure.of_game else not_writable(error)
            raise PeerFailure(failure) if known is None else known from error


def _play(
    manifest: SwarmGame,
    folder: Path,
    resolved: ResolvedGame,
    options: PeerOptions,
    ranks: Ranks,
    peer: PeerId,
    status: PeerStatus,
    stop: threading.Event,
    cleanup: ExitStack,
) -> ExitCode:
    spec = manifest.spec
    metrics = PeerMetrics(peer=peer, index=options.index, version=swarmgame.__version__)
    if ranks.rank == 0:
        _serve(options, status, metrics, peer, cleanup)

    # 1. the components, and the last checkpoint
    components = _components(manifest, resolved, ranks, peer, options.directory)
    cleanup.callback(components.close)
    store = CheckpointStore(PeerDirectory(options.directory).checkpoints, keep=spec.storage.checkpoints.keep)
    saved = store.load_latest()

    # 2. the connections: the chain first, since it names the bootnodes and the peers that are admitted
    reporter = _chain_reporter(manifest, options, peer, status, metrics) if ranks.rank == 0 else None
    bootnodes: tuple[str, ...] = ()
    if reporter is not None:
        cleanup.callback(reporter.stop)
        from swarmgame.chain.reporter import start_reporter

        bootnodes = start_reporter(reporter)
    registered_only = spec.communication.admission == "Registered"
    backend: Backend | None = None
    if ranks.rank == 0:
        admission = reporter.admits if reporter is not None and registered_only else lambda peer: True
        backend = make_backend(manifest, options, bootnodes=bootnodes, admission=admission)
    communication = PeerCommunication(
        backend,
        ranks,
        peer=peer,
        run=run_id(manifest),
        keep_rounds=kept_rounds(manifest),
        interrupted=stop.is_set,
    )
    cleanup.callback(communication.leave)

    # 3. the state
    collected_log = CollectedLog(spec.game.sharing.max_staleness_rounds)
    if saved is not None:
        _restore(saved, components, communication, collected_log)
        logger.info("resuming at round %d from %s", saved.next_round, saved.path)
    observers: list[Observer] = []
    if backend is not None:

        def state() -> Mapping[str, Any]:
            if archive is not None:
                archive.flush()
            return {
                "trainer": components.trainer.state_dict(),
                "data": components.data.state_dict(),
                "communication": communication.state_dict(),
                "collected_log": collected_log.state_dict(),
                # Not `communication`, which is a collective call: only rank 0 saves.
                "members": [member.peer for member in backend.membership()],
            }

        archive = make_archive(manifest, folder, options, saved, components, ranks.size, peer)
        if archive is not None:
            cleanup.callback(archive.close)
        observers = [
            diagnostics(manifest, options, components, status, metrics),
            *record_keepers(manifest, options, store, saved, state, status, metrics, archive),
            *export_writers(manifest, options, components),
            *trackers(manifest, resolved, options, cleanup),
        ]
    if reporter is not None:
        from swarmgame.chain.reporter import ChainObserver

        observers.append(ChainObserver(reporter))

    # 4. the swarm
    deadline_seconds = options.deadline_of(manifest)
    status.change(phase=Phase.JOINING)
    if reporter is not None and registered_only and not reporter.wait_until_registered(deadline_seconds, stop.is_set):
        logger.warning(
            "the registration of this peer is not final yet, so other peers do not admit it: %s",
            reporter.status().problem,
        )
    communication.join(
        expect=tuple(saved.state["members"]) if saved is not None else (),
        min_replicas=options.min_replicas_of(manifest),
        timeout_seconds=deadline_seconds,
    )
    if backend is not None:
        status.change(addresses=backend.addresses)

    # 5. the game
    manager = GameManager(
        progression_of(manifest),
        data=components.data,
        rewards=components.rewards,
        trainer=components.trainer,
        communication=communication,
        roles=roles_of(manifest),
        collected_log=collected_log,
        observers=observers,
        stopped=agreed(stop.is_set, ranks),
        weights_hash=(lambda: weights_hash(components.trainer)) if ranks.rank == 0 else (lambda: ""),
    )
    # All objects that exist now live until the end: the garbage collector need not visit them again each time that a
    # quarter as many have been added. They are released again at the end: nanobind reports all that is left at exit.
    gc.collect()
    gc.freeze()
    cleanup.callback(gc.unfreeze)
    result = manager.run(saved.next_round if saved is not None else None)

    # 6. the end
    status.stopping()
    if result is RunResult.FINISHED:
        deadline = time.monotonic() + spec.game.progression.stage_deadline_seconds
        _linger(communication, manifest, agreed(lambda: stop.is_set() or time.monotonic() >= deadline, ranks))
        if reporter is not None:
            reporter.finish(CHAIN_SECONDS, stop.is_set)
        status.change(phase=Phase.FINISHED)
    elif reporter is not None:
        reporter.finish(CHAIN_SECONDS_STOPPED, lambda: False)
    return EXIT_CODES[result]


def _serve(options: PeerOptions, status: PeerStatus, metrics: PeerMetrics, peer: PeerId, cleanup: ExitStack) -> None:
    """Start the endpoints, and write their port where the runner reads it."""
    endpoints = Endpoints(status, metrics, options.http_host, options.http_port)
    cleanup.callback(endpoints.stop)
    port = endpoints.start()
    PeerDirectory(options.directory).http.write_text(json.dumps({"port": port, "peer": peer}))


def _components(manifest: SwarmGame, resolved: ResolvedGame, ranks: Ranks, peer: PeerId, directory: Path) -> Components:
    """Create the components of this rank. Rank 0 holds the sandbox; the others get its rewards."""
    device = f"cuda:{torch.cuda.current_device()}" if torch.cuda.is_available() else "cpu"
    context = context_of(manifest, peer=peer, ranks=ranks, device=device, directory=directory.absolute())
    if ranks.size == 1:
        return assemble(resolved, context)
    if ranks.rank == 0:
        components = assemble(resolved, context)
        return replace(components, rewards=RankedRewards(components.rewards, ranks))
    return assemble(resolved, context, rewards=RankedRewards(None, ranks))


def _chain_reporter(
    manifest: SwarmGame, options: PeerOptions, peer: PeerId, status: PeerStatus, metrics: PeerMetrics
) -> ChainReporter | None:
    """Return the reporter to the game's chain; None where it has none."""
    endpoint = resolve_endpoint(manifest, options.chain)
    if endpoint is None:
        return None
    if manifest.spec.communication.admission == "Registered":
        status.change(registered=False)

    def changed(state: ReporterStatus) -> None:
        metrics.chain(waiting=state.waiting, final=state.final, rejected=state.rejected_count, dropped=state.dropped)
        status.change(chain=asdict(state), **({"registered": True} if state.registered else {}))

    with chain_errors(manifest.spec.coordination.mode):
        from swarmgame.chain.reporter import make_reporter

        return make_reporter(endpoint, Identity.load(options.network.identity).secret, changed)


def _restore(
    saved: Checkpoint, components: Components, communication: PeerCommunication, collected_log: CollectedLog
) -> None:
    try:
        components.trainer.load_state_dict(saved.state["trainer"])
        components.data.load_state_dict(saved.state["data"])
        collected_log.load_state_dict(saved.state["collected_log"])
        communication.load_state_dict(saved.state["communication"])
    except codec.Malformed as error:
        found = f"holds contributions of another version of the wire format ({error})"
        raise BadData(other_version(saved.path, found, f"version {codec.SCHEMA}")) from error
    except (KeyError, ValueError, RuntimeError, TypeError) as error:
        advice = "it was made by another game or model: remove the run's folder, or give the run another name"
        raise BadData(f"{saved.path}: the checkpoint does not fit this manifest ({error}); {advice}") from error


def _linger(communication: CommunicationManager, manifest: SwarmGame, over: Callable[[], bool]) -> None:
    """Wait until every live member has played its last round: a slower one may still need this peer's contributions."""
    last = manifest.spec.game.max_rounds
    communication.announce_progress(last, 0)
    while not over():
        if all(member.round >= last for member in communication.membership() if member.peer != communication.peer):
            return
        time.sleep(0.1)


@contextmanager
def _stop_signals() -> Iterator[threading.Event]:
    """Yield an event that SIGTERM and SIGINT set; the loop checks it between steps. Outside the main thread signals
    are left as they are.
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
