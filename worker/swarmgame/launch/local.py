"""The local runner: a game on one machine, one process (or several ranks) for each peer.

It checks the game, prepares what all peers share, gives each peer its key, its port and the addresses of the others,
and supervises them. The peers are `swarmgame.runtime.peer`. Invariants: nothing is written for a manifest that cannot
be used; a run's folder holds all that running it again needs, so that running again is resuming.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from swarmgame.chain.endpoint import chain_errors, resolve_endpoint
from swarmgame.errors import BadUsage, ExitCode, InvalidManifest, NotWritable
from swarmgame.inference.vllm_process import find_program
from swarmgame.launch.common_round import set_back
from swarmgame.launch.display import Notify, RunDisplay
from swarmgame.launch.fork_server import PeerForkServer, can_fork, modules_of
from swarmgame.launch.local_peers import (
    HOST,
    LocalNetwork,
    Machine,
    allocate_network,
    check_host,
    outsiders,
    this_machine,
)
from swarmgame.launch.peer_end import indented
from swarmgame.launch.peer_process import StartProcess, start_command
from swarmgame.launch.pod import PeerProgram, peer_program
from swarmgame.launch.reachable import Reachable, reachable
from swarmgame.launch.results import export_hint, place_of, record_end, report_results
from swarmgame.launch.supervisor import RestartPolicy, RunOutcome, Supervisor
from swarmgame.observability.run_directory import RunDirectory, RunProgress
from swarmgame.observability.text import counted
from swarmgame.runtime.options import PeerOptions, peer_arguments
from swarmgame.sandbox.client import SharedSandbox
from swarmgame_api.load import manifest_data
from swarmgame_api.manifest import SwarmGame

if TYPE_CHECKING:
    from swarmgame.chain.local import ChainMonitor

ALL_PEERS = "100%"
GRACE_SECONDS = 30.0
"""The manifest's grace period is meant for a cluster; at a terminal it is at most this."""
JOIN_SECONDS = 60.0
"""Longest wait of a peer for the others. The manifest's deadline allows for a cluster that starts nodes."""

Step = Callable[[SwarmGame, Path], object]
"""Does something with a manifest and its folder."""


@dataclass(frozen=True)
class RunOptions:
    """The options of `swarmgame run`.

    Args:
        game: the manifest's file.
        overrides: `a.b=c` for the peers, which read the manifest themselves.
        runs: folder of all runs.
        name: of the run; empty takes the game's.
        fresh: remove what the run has done so far.
        report: whether to write plots and report at the end.
        host: IPv4 address on which the peers listen for others.
        random_keys: do not derive keys from the seed, even where no other peer can take part.
        program, machine: the tests use others.
    """

    game: Path
    overrides: tuple[str, ...] = ()
    runs: Path = Path("runs")
    name: str = ""
    fresh: bool = False
    report: bool = True
    host: str = HOST
    random_keys: bool = False
    program: PeerProgram = peer_program
    machine: Callable[[], Machine] = this_machine


def run(manifest: SwarmGame, options: RunOptions, *, check: Step, prepare: Step, notify: Notify) -> ExitCode:
    """Run a game to its end, or resume it.

    Args:
        manifest: of `options.game`, with the overrides.
        check: finds mistakes in the game's components; writes nothing.
        prepare: creates what all peers share (the model's warm start), once.

    Raises:
        InvalidManifest: nothing was started, and nothing was written.
        BadUsage: the run's folder belongs to another game, or the run's name or host is not valid.
        Temporary: another process holds the run.
    """
    began = time.monotonic()
    peers = manifest.spec.peers.replicas
    if peers == 0:
        raise BadUsage("the game has 0 peers, which suspends it; give a number with --peers")
    directory = RunDirectory.of(options.runs, options.name or manifest.metadata.name)
    folder = options.game.absolute().parent
    check_host(options.host)
    manifest, options = with_all_peers(manifest, options)
    with ExitStack() as stack:
        # First of all, as its imports take seconds: the checks run meanwhile.
        start = stack.enter_context(_fork_server(manifest, options, notify))
        sandbox = stack.enter_context(ExitStack())
        sandbox.enter_context(SharedSandbox.held())  # for both `check` and `prepare`
        check(manifest, folder)
        _check_chain(manifest)
        _check_sampler(manifest)
        stack.enter_context(_removed_if_invalid(directory.root))
        stack.enter_context(directory.locked())
        if options.fresh:
            directory.clear()
        directory.refuse_other_game(manifest_data(manifest))
        before = directory.progress()
        max_rounds = manifest.spec.game.max_rounds
        if before is not None and before.finished and before.max_rounds >= max_rounds:
            notify(f"the run {directory.root.name} has finished its {before.max_rounds} rounds: {place_of(directory)}")
            notify("play more with --rounds, begin again with --fresh, or choose another --name")
            return ExitCode.DONE
        directory.keep_manifest(manifest_data(manifest))
        if manifest.spec.model is not None:
            notify(f"preparing {manifest.spec.model.uri}")
        prepare(manifest, folder)
        sandbox.close()
        directory.keep_source(folder)
        seconds = before.seconds if before is not None else 0.0
        progress = RunProgress(peers=peers, max_rounds=max_rounds, finished=False, seconds=seconds)
        directory.record_progress(progress)
        if before is not None:
            notify(f"the run {directory.root.name} goes on from its checkpoints")
            if not outsiders(manifest, options.host):  # others would be ahead of peers that go back
                common = set_back(
                    {index: directory.peer(index) for index in range(peers)},
                    manifest.spec.storage.checkpoints.every_rounds,
                )
                if common is not None:
                    notify(f"not all peers had saved the last rounds: all go on from round {common}")
        outcome = _play(manifest, options, directory, notify, start)
        seconds += time.monotonic() - began
        record_end(directory, replace(progress, finished=outcome.code is ExitCode.DONE, seconds=seconds), notify)
        _conclude(manifest, options, directory, outcome, notify)
        return outcome.code


# ── the peers' processes


def with_all_peers(manifest: SwarmGame, options: RunOptions) -> tuple[SwarmGame, RunOptions]:
    """Let a stage wait for every live peer, where the manifest names no quorum and all peers are on this machine.

    The default of 67 % is for swarms in which some peers are slow or away: here it would leave out the peer that the
    machine happens to run last. A peer that dies is no longer waited for once its heartbeat has expired.
    """
    progression = manifest.spec.game.progression
    if "quorum" in progression.model_fields_set or outsiders(manifest, options.host):
        return manifest, options
    game = manifest.spec.game.model_copy(update={"progression": progression.model_copy(update={"quorum": ALL_PEERS})})
    spec = manifest.spec.model_copy(update={"game": game})
    overrides = (*options.overrides, f"spec.game.progression.quorum={ALL_PEERS}")
    return manifest.model_copy(update={"spec": spec}), replace(options, overrides=overrides)


def peer_commands(
    manifest: SwarmGame, options: RunOptions, directory: RunDirectory, network: LocalNetwork, machine: Machine
) -> Callable[[int, bool], Sequence[str]]:
    """Return a function from a peer's index, and whether it is restarted, to its command."""
    peers, processes = manifest.spec.peers.replicas, machine.processes_of(manifest)

    def command(index: int, restart: bool) -> Sequence[str]:
        files = directory.peer(index)
        peer = PeerOptions(
            directory=files.root,
            network=network.options_of(index, manifest, files),
            index=index,
            # A restarted peer must not wait for one that has failed meanwhile.
            min_replicas=min(peers, 2) if restart else peers,
            pre_running_deadline_seconds=JOIN_SECONDS,
            threads=machine.threads_of(peers, processes),
            anchors=network.others_of(index),
        )
        return [*options.program(processes), *peer_arguments(options.game, peer, options.overrides)]

    return command


# ── the run


def _play(
    manifest: SwarmGame, options: RunOptions, directory: RunDirectory, notify: Notify, start: StartProcess
) -> RunOutcome:
    network = allocate_network(manifest, directory, options.host, random_keys=options.random_keys, notify=notify)
    with _chain(manifest, directory, network) as (chain_environment, watch):
        outcome = _supervise(manifest, options, directory, network, chain_environment, watch, start)
        if watch is not None:
            try:
                watch.settle(manifest.spec.game.max_rounds if outcome.code is ExitCode.DONE else 0)
            except NotWritable as error:  # it must not hide how the run ended
                notify(f"the last state of the chain is not kept: {error}")
            notify(watch.line or "chain: the node does not answer")
    return outcome


def _supervise(
    manifest: SwarmGame,
    options: RunOptions,
    directory: RunDirectory,
    network: LocalNetwork,
    chain_environment: Mapping[str, str],
    watch: ChainMonitor | None,
    start: StartProcess,
) -> RunOutcome:
    spec = manifest.spec
    machine = options.machine()
    peers, processes = spec.peers.replicas, machine.processes_of(manifest)
    directories = {index: directory.peer(index) for index in range(peers)}
    display = RunDisplay(
        f"{directory.root.name}: {counted(peers, 'peer')}, {counted(spec.game.max_rounds, 'round')}",
        spec.game.max_rounds,
        directories,
        caption=lambda: watch.line if watch is not None else "",
    )
    supervisor = Supervisor(
        directories,
        peer_commands(manifest, options, directory, network, machine),
        environment=lambda index: {**machine.environment_of(index, peers, processes), **chain_environment},
        restart_policy=RestartPolicy(
            restarts=spec.failure_policy.backoff_limit_per_peer,
            failed_peers=spec.failure_policy.max_failed_peers,
            grace_seconds=min(float(spec.termination_grace_period_seconds), GRACE_SECONDS),
        ),
        notify=display.print_event,
        start=start,
    )
    with display, _stop_on_signals(supervisor, display.print):
        if spec.communication.backend != "TorchDistributed":
            display.print_event(_reachable(options, network))
        try:
            return supervisor.run(lambda: display.refresh(supervisor.states))
        finally:
            display.refresh(supervisor.states, now=True)


def _reachable(options: RunOptions, network: LocalNetwork) -> Reachable:
    """Return where one more peer joins the peers of a run."""
    hint = "--host 0.0.0.0 lets other machines join" if network.host == HOST else ""
    return reachable(options.game, options.overrides, network.addresses_for_others, hint)


def _conclude(
    manifest: SwarmGame, options: RunOptions, directory: RunDirectory, outcome: RunOutcome, notify: Notify
) -> None:
    if any(peer.metrics.exists() for peer in directory.peers().values()):
        report_results(directory, notify, page=options.report)
    for index, reason in outcome.failed.items() if outcome.code is ExitCode.DONE else ():
        notify("\n".join([f"warning: peer {index} failed during the run", *indented(reason)]))
    if outcome.message:
        notify(outcome.message)
    if outcome.code is ExitCode.STOPPED:
        notify("stopped; run the same command again to go on")
    notify(place_of(directory))
    exported = [path for peer in directory.peers().values() for path in peer.exports.glob("round-*")]
    if exported:
        notify(f"{len(exported)} models for transformers: {directory.root}/peers/*/exports")
    elif outcome.code is ExitCode.DONE:
        notify(export_hint(manifest, _run_argument(options, directory)))


def _run_argument(options: RunOptions, directory: RunDirectory) -> str:
    """Return the run as the argument of another command in this folder: its name, or its path."""
    return directory.root.name if options.runs == Path("runs") else str(directory.root)


def _check_chain(manifest: SwarmGame) -> None:
    """Find mistakes about the game's chain before anything is written."""
    mode = manifest.spec.coordination.mode
    if mode == "Dev":
        with chain_errors(mode):
            from swarmgame.chain.local import require_anvil

            require_anvil()
    elif mode == "External":
        resolve_endpoint(manifest)


def _check_sampler(manifest: SwarmGame) -> None:
    """Find the program of the generation server that each peer will start."""
    options = manifest.spec.game.vllm
    if options is not None and not options.url:
        find_program(options)


@contextmanager
def _chain(
    manifest: SwarmGame, directory: RunDirectory, network: LocalNetwork
) -> Iterator[tuple[Mapping[str, str], ChainMonitor | None]]:
    """Yield the peers' environment about the chain, and its watcher; neither where the game has no chain."""
    mode = manifest.spec.coordination.mode
    if mode == "None":
        yield {}, None
        return
    with chain_errors(mode):
        from swarmgame.chain.local import ChainMonitor, dev_chain
    with ExitStack() as stack:
        place = (
            stack.enter_context(dev_chain(directory.chain, network.addresses))
            if mode == "Dev"
            else resolve_endpoint(manifest)
        )
        assert place is not None
        watch = ChainMonitor(place, network.ids, directory.chain_standing, from_genesis=mode == "Dev")
        watch.start()
        yield place.environment(), watch


@contextmanager
def _fork_server(manifest: SwarmGame, options: RunOptions, notify: Notify) -> Iterator[StartProcess]:
    """Yield the function that starts peers: as forks where that is safe and quicker, else as commands."""
    if options.program is peer_program and can_fork(manifest):
        with PeerForkServer(modules_of(manifest), notify) as server:
            yield server.start
    else:
        yield start_command


@contextmanager
def _removed_if_invalid(root: Path) -> Iterator[None]:
    """Remove the folders that the block creates, if it finds that the game is invalid."""
    created = [folder for folder in (root, *root.parents) if not folder.exists()]
    try:
        yield
    except InvalidManifest:
        for folder in created:
            if folder == root and folder.exists():
                for file in ("lock", "game.yaml"):
                    (folder / file).unlink(missing_ok=True)
            if folder.exists() and not any(folder.iterdir()):
                folder.rmdir()
        raise


@contextmanager
def _stop_on_signals(supervisor: Supervisor, notify: Notify) -> Iterator[None]:
    """Stop the peers on Ctrl-C and SIGTERM; a second one kills them."""
    received = 0

    def stop(number: int, frame: FrameType | None) -> None:
        nonlocal received
        received += 1
        supervisor.stop()
        if received == 1:
            notify("leaving the swarm; press Ctrl-C again to kill at once")

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
