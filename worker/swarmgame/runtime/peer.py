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
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

import swarmgame
from swarmgame.chain.endpoint import chain_errors, resolve_endpoint
from swarmgame.errors import BadData, ExitCode, InvalidManifest, SwarmGameError, not_writable, writing
from swarmgame.game.collected_log import CollectedLog
from swarmgame.game.components import Trainer
from swarmgame.game.manager import GameManager, RunResult
from swarmgame.game.protocol import CommunicationManager
from swarmgame.game.ranks import Ranks
from swarmgame.game.remote_work import RemoteWork
from swarmgame.game.report import Observer
from swarmgame.game.sharing_records import SharingRecords
from swarmgame.game.state import PeerId
from swarmgame.observability.http import Endpoints
from swarmgame.observability.metrics import PeerMetrics
from swarmgame.observability.run_directory import PeerDirectory, write_atomically
from swarmgame.observability.status import PeerStatus, Phase
from swarmgame.runtime.admission import admission_of
from swarmgame.runtime.archiving import make_archive
from swarmgame.runtime.assembly import (
    Components,
    ResolvedGame,
    local_modules,
    progression_of,
    resolve_game,
    roles_of,
)
from swarmgame.runtime.checkpoint import Checkpoint, CheckpointParticipant, CheckpointStore
from swarmgame.runtime.checkpoint_manifest import other_version
from swarmgame.runtime.communication import Backend, PeerCommunication, kept_rounds, make_backend
from swarmgame.runtime.failure import PeerFailure, failure_of, packages_of
from swarmgame.runtime.observers import (
    GivesUp,
    RemoteWorkObserver,
    diagnostics,
    export_writers,
    record_keepers,
    trackers,
)
from swarmgame.runtime.options import PeerOptions, run_id
from swarmgame.runtime.ranks import DistributedRanks, agreed, rank_components, ranks_from_environment
from swarmgame.runtime.sources import check_resume, sources_of
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


Reachable = Callable[[Sequence[str]], None]
"""Gets the addresses at which other peers reach this one, as soon as it listens there."""


def log_addresses(addresses: Sequence[str]) -> None:
    """Log the addresses of this peer."""
    logger.info("other peers reach this one at %s", " ".join(addresses))


def run_peer(manifest: SwarmGame, folder: Path, options: PeerOptions, reachable: Reachable = log_addresses) -> ExitCode:
    """Run one peer until the end of the game.

    Args:
        manifest: checked.
        folder: of the manifest; the author's own modules are imported from there.
        reachable: shows the addresses; not called where no other peer can join.

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
        with writing(options.directory):
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
            resolved = resolve_game(manifest, folder)
            return _play(manifest, folder, resolved, options, ranks, peer, status, stop, cleanup, reachable)
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
    reachable: Reachable,
) -> ExitCode:
    spec = manifest.spec
    metrics = PeerMetrics(peer=peer, index=options.index, version=swarmgame.__version__)
    backend: Backend | None = None
    if ranks.rank == 0:
        _serve(options, status, metrics, peer, cleanup, dead=lambda: backend.failure if backend is not None else "")

    # 1. the components, and the last checkpoint
    work = RemoteWork(logger.warning, closed=spec.communication.backend == "TorchDistributed")
    components = rank_components(manifest, resolved, ranks, peer, options.directory, work)
    cleanup.callback(components.close)
    sources = sources_of(manifest, resolved, components.data, components.trainer.base_model)
    status.change(sources=sources.as_json())
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
    if ranks.rank == 0:
        admission = admission_of(manifest, options, reporter.admits if reporter is not None else None)
        backend = make_backend(
            manifest,
            options,
            bootnodes=bootnodes,
            admission=admission,
            sources=sources,
            rollout_tokens=components.trainer.tokens_per_rollout,
            rollouts_per_group=components.trainer.rollouts_per_group,
        )
    communication = PeerCommunication(
        backend,
        ranks,
        peer=peer,
        run=run_id(manifest),
        keep_rounds=kept_rounds(manifest),
        interrupted=stop.is_set,
        work=work,
        stages=spec.game.stages,
    )
    cleanup.callback(communication.leave)

    # 3. the state
    collected_log = CollectedLog(spec.game.sharing.max_staleness_rounds)
    sharing_records = SharingRecords(spec.game.sharing.max_staleness_rounds)
    if saved is not None:
        check_resume(saved, sources, manifest.spec.model.uri if manifest.spec.model is not None else "")
        _restore(saved, components, communication, collected_log, sharing_records)
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
                "sharing_records": sharing_records.state_dict(),
                # Not `communication`, which is a collective call: only rank 0 saves.
                "members": [member.peer for member in backend.membership()],
                "sources": sources.as_json(),
            }

        def announce(saving: bool) -> None:
            if components.trainer.has_shared_state:
                ranks.broadcast(bytes([saving]))

        archive = make_archive(manifest, folder, options, saved, components, ranks.size, peer)
        if archive is not None:
            cleanup.callback(archive.close)
        exports = export_writers(manifest, options, components)
        tracking = trackers(manifest, resolved, options, cleanup)
        optional: list[GivesUp] = [*([archive] if archive is not None else []), *exports, *tracking]
        observers = [
            RemoteWorkObserver(work),
            diagnostics(manifest, options, components, status, metrics, optional),
            *record_keepers(manifest, options, store, saved, state, status, metrics, archive, announce),
            *exports,
            *tracking,
        ]
    elif components.trainer.has_shared_state:
        observers = [CheckpointParticipant(lambda: ranks.broadcast(None) == b"\x01", components.trainer.state_dict)]
    if reporter is not None:
        from swarmgame.chain.reporter import ChainObserver

        observers.append(ChainObserver(reporter))

    # 4. the swarm
    deadline_seconds = options.deadline_of(manifest)
    status.change(phase=Phase.JOINING)
    if backend is not None:
        backend.start()
        status.change(addresses=backend.addresses)
        if backend.addresses:
            reachable(backend.addresses)
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

    # 5. the game
    manager = GameManager(
        progression_of(manifest),
        data=components.data,
        rewards=components.rewards,
        trainer=components.trainer,
        communication=communication,
        roles=roles_of(manifest),
        collected_log=collected_log,
        sharing_records=sharing_records,
        episodes=components.episodes,
        observers=observers,
        stopped=agreed(stop.is_set, ranks),
        weights_hash=lambda: _weights_hash(components.trainer, ranks),
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


def _serve(
    options: PeerOptions,
    status: PeerStatus,
    metrics: PeerMetrics,
    peer: PeerId,
    cleanup: ExitStack,
    *,
    dead: Callable[[], str],
) -> None:
    """Start the endpoints, and write their port where the runner reads it."""
    endpoints = Endpoints(status, metrics, options.http_host, options.http_port, dead=dead)
    cleanup.callback(endpoints.stop)
    port = endpoints.start()
    write_atomically(PeerDirectory(options.directory).http, json.dumps({"port": port, "peer": peer}))


def _weights_hash(trainer: Trainer, ranks: Ranks) -> str:
    """Return the hash on the first rank. The others return none, but take part where they share the weights."""
    if ranks.rank and not trainer.has_shared_state:
        return ""
    with ranks.guarded("gathering the weights for their hash"):
        found = weights_hash(trainer)
    return "" if ranks.rank else found


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
    saved: Checkpoint,
    components: Components,
    communication: PeerCommunication,
    collected_log: CollectedLog,
    sharing_records: SharingRecords,
) -> None:
    try:
        components.trainer.load_state_dict(saved.state["trainer"])
        components.data.load_state_dict(saved.state["data"])
        collected_log.load_state_dict(saved.state["collected_log"])
        sharing_records.load_state_dict(saved.state.get("sharing_records", {}))
        communication.load_state_dict(saved.state["communication"], saved.next_round)
    except codec.Malformed as error:
        found = f"holds contributions of another version of the wire format ({error})"
        raise BadData(other_version(saved.path, found, f"version {codec.SCHEMA}")) from error
    except (KeyError, ValueError, RuntimeError, TypeError) as error:
        advice = "it was made by another game or model: remove the run's folder, or give the run another name"
        raise BadData(f"{saved.path}: the checkpoint does not fit this manifest ({error}); {advice}") from error


def _linger(communication: CommunicationManager, manifest: SwarmGame, over: Callable[[], bool]) -> None:
    """Wait until every live member that counts has played its last round: a slower one may still need this peer's
    contributions.
    """
    last = manifest.spec.game.max_rounds
    communication.announce_progress(last, 0)
    while not over():
        others = [m for m in communication.membership() if m.weight and m.peer != communication.peer]
        if all(member.round >= last for member in others):
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
