"""The local runner: a game on one machine, one process (or several ranks) per peer.

It validates, prepares what all peers share, gives each its key, its port and the addresses of the others, and then only
looks on. It does not play: that is `swarmgame.runtime.peer`. Invariants: nothing is written for a manifest that cannot
be used; a run's folder holds all that running it again needs, so that running again is resuming.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event, Thread
from types import FrameType
from typing import TYPE_CHECKING

from swarmgame.chain.endpoint import chain_errors, resolve_endpoint
from swarmgame.errors import BadUsage, ExitCode, InvalidManifest
from swarmgame.inference.vllm_process import find_program
from swarmgame.launch.live_table import JsonLines, View, view
from swarmgame.launch.progress import KEEP_ROUNDS, PeerProgress
from swarmgame.launch.supervisor import Outcome, Patience, Supervisor
from swarmgame.observability.run_directory import Progress, RunDirectory
from swarmgame.swarm.identity import Identity, dial_address
from swarmgame_api.load import load_manifest, manifest_data
from swarmgame_api.manifest import SwarmGame

if TYPE_CHECKING:
    from swarmgame.chain.local import ChainMonitor

HOST = "127.0.0.1"
ASK_SECONDS = 1.0
LOOK_SECONDS = 0.4
GRACE_SECONDS = 30.0
"""The manifest's grace is meant for a cluster; somebody who waits at a terminal gets at most this."""

PeerProgram = Callable[[int], Sequence[str]]


@dataclass(frozen=True)
class RunOptions:
    """What `swarmgame run` was asked for.

    Args:
        game: the manifest's file.
        overrides: `a.b=c`, the command line's short cuts (`--peers`, `--rounds`, …) among them.
        runs: folder of all runs.
        name: of the run; empty takes the game's.
        fresh: forget what the run has done so far.
        report: whether to write plots and report at the end.
        program: the start of a peer's command, from the number of its processes; the tests put another one in its
            place.
    """

    game: Path
    overrides: tuple[str, ...] = ()
    runs: Path = Path("runs")
    name: str = ""
    fresh: bool = False
    report: bool = True
    program: PeerProgram = field(default=lambda processes: peer_program(processes))


Step = Callable[[SwarmGame, Path], object]
"""Does something with a manifest, told its folder."""


def run(options: RunOptions, *, check: Step, prepare: Step, say: Callable[[str], None]) -> ExitCode:
    """Runs a game to its end, or resumes it.

    Args:
        check: finds what is wrong with the game's parts; writes nothing.
        prepare: makes what all peers share (the model's warm start), once.
        say: is told what a person should know; never called with anything secret.

    Raises:
        InvalidManifest: nothing was started, and nothing was written.
        BadUsage: the run's folder belongs to another game, or the run's name is none.
        Temporary: another process holds the run.
    """
    manifest = load_manifest(options.game, options.overrides)
    peers = manifest.spec.peers.replicas
    if peers == 0:
        raise BadUsage("the game asks for 0 peers, which suspends it; say how many with --peers")
    directory = RunDirectory.of(options.runs, options.name or manifest.metadata.name)
    folder = options.game.absolute().parent
    check(manifest, folder)
    _check_chain(manifest)
    _check_sampler(manifest)
    with ExitStack() as stack:
        stack.enter_context(_nothing_left_of_an_invalid_game(directory.root))
        stack.enter_context(directory.locked())
        if options.fresh:
            directory.clear()
        data = manifest_data(manifest)
        directory.refuse_another_game(data)
        before = directory.progress()
        asked = Progress(peers=peers, max_rounds=manifest.spec.game.max_rounds, finished=True)
        if before is not None and before.finished and before.max_rounds >= asked.max_rounds:
            say(f"the run {directory.root.name} has finished its {before.max_rounds} rounds: {_where(directory)}")
            say("ask for more with --rounds, begin again with --fresh, or choose another --name")
            return ExitCode.DONE
        directory.keep_manifest(data)
        if manifest.spec.model is not None:
            say(f"preparing {manifest.spec.model.uri}")
        prepare(manifest, folder)
        directory.note(Progress(peers=peers, max_rounds=asked.max_rounds, finished=False))
        if before is not None:
            say(f"the run {directory.root.name} goes on from its checkpoints")
        outcome = _play(options, manifest, directory, say)
        if outcome.code is ExitCode.DONE:
            directory.note(asked)
        _conclude(options, directory, outcome, say)
        return outcome.code


def peer_program(processes: int) -> Sequence[str]:
    """The start of the command of a peer with this many ranks."""
    if processes == 1:
        return (sys.executable, "-m", "swarmgame", "peer")
    return (
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        f"--nproc-per-node={processes}",
        "-m",
        "swarmgame",
        "peer",
    )


def free_ports(count: int, host: str = HOST) -> list[int]:
    """That many different TCP ports which nobody listens on at the moment."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_STREAM)) for _ in range(count)]
        for each in sockets:
            each.bind((host, 0))
        return [each.getsockname()[1] for each in sockets]


def processes_of(manifest: SwarmGame) -> int:
    """Processes of one peer; `auto` on one machine is a single one, because its GPUs are shared by all peers."""
    asked = manifest.spec.peers.processes_per_peer
    return 1 if asked == "auto" else asked


def threads_of(peers: int, processes: int) -> int:
    """Threads of one process, so that all together take the cores that we may use, and no more."""
    return max(1, len(os.sched_getaffinity(0)) // (peers * processes))


@dataclass(frozen=True, slots=True)
class Seats:
    """The peers' ids and ports, by index."""

    ids: Sequence[str]
    ports: Sequence[int]

    @property
    def addresses(self) -> list[str]:
        return [dial_address(peer, port, HOST) for peer, port in zip(self.ids, self.ports, strict=True)]


def seats_of(manifest: SwarmGame, directory: RunDirectory) -> Seats:
    """Makes the keys that are missing, and takes a port for each peer."""
    peers = manifest.spec.peers.replicas
    ports = free_ports(peers)
    return Seats([Identity.load_or_create(directory.peer(index).key).peer for index in range(peers)], ports)


def peer_commands(
    options: RunOptions, manifest: SwarmGame, directory: RunDirectory, seats: Seats
) -> Callable[[int, bool], Sequence[str]]:
    """How each peer is started."""
    peers, processes = manifest.spec.peers.replicas, processes_of(manifest)
    closed = manifest.spec.communication.backend == "TorchDistributed"

    def reachable(index: int) -> list[str]:
        others = (*seats.addresses[:index], *seats.addresses[index + 1 :], *manifest.spec.communication.initial_peers)
        return [f"--port={seats.ports[index]}", *(f"--initial-peer={address}" for address in others)]

    def command(index: int, restart: bool) -> Sequence[str]:
        files = directory.peer(index)
        arguments = [*options.program(processes), str(options.game.absolute())]
        arguments += [f"--set={override}" for override in options.overrides]
        arguments += [f"--index={index}", f"--directory={files.root}", f"--identity={files.key}"]
        arguments += [f"--rendezvous={HOST}:{seats.ports[0]}"] if closed else reachable(index)
        # One that comes back must not wait for somebody who has been given up meanwhile.
        arguments += [f"--at-least={min(peers, 2) if restart else peers}", f"--threads={threads_of(peers, processes)}"]
        return arguments

    return command


def _play(options: RunOptions, manifest: SwarmGame, directory: RunDirectory, say: Callable[[str], None]) -> Outcome:
    seats = seats_of(manifest, directory)
    with _chain(manifest, directory, seats) as (chain, watch):
        outcome = _watched(options, manifest, directory, say, seats, chain, watch)
        if watch is not None:
            watch.settle(manifest.spec.game.max_rounds if outcome.code is ExitCode.DONE else 0)
            say(watch.line or "chain: the node does not answer")
    return outcome


def _watched(
    options: RunOptions,
    manifest: SwarmGame,
    directory: RunDirectory,
    say: Callable[[str], None],
    seats: Seats,
    chain: Mapping[str, str],
    watch: ChainMonitor | None,
) -> Outcome:
    spec = manifest.spec
    peers, processes = spec.peers.replicas, processes_of(manifest)
    progress = [PeerProgress(index, directory.peer(index), keep=KEEP_ROUNDS) for index in range(peers)]
    for peer in progress:
        peer.look()
    shown = view(f"{directory.root.name}: {peers} peers, {spec.game.max_rounds} rounds", spec.game.max_rounds)
    if isinstance(shown, JsonLines):
        shown.skip(progress)
    supervisor = Supervisor(
        {index: directory.peer(index) for index in range(peers)},
        peer_commands(options, manifest, directory, seats),
        environment={**_environment(threads_of(peers, processes)), **chain},
        patience=Patience(
            restarts=spec.failure_policy.backoff_limit_per_peer,
            failed_peers=spec.failure_policy.max_failed_peers,
            grace_seconds=min(float(spec.termination_grace_period_seconds), GRACE_SECONDS),
        ),
        say=shown.say,
    )
    with _stopping(supervisor, shown, say), _asking(progress):
        looked = 0.0

        def tick() -> None:
            nonlocal looked
            if time.monotonic() - looked < LOOK_SECONDS:  # drawing must not take the peers' cores
                return
            looked = time.monotonic()
            states = supervisor.states
            for peer in progress:
                peer.state = states[peer.index]
                peer.look()
            if watch is not None:
                shown.note(watch.line)
            shown.show(progress)

        try:
            outcome = supervisor.run(tick)
        finally:
            for peer in progress:
                peer.state = supervisor.states[peer.index]
                peer.look()
            shown.close(progress)
    return outcome


def _check_chain(manifest: SwarmGame) -> None:
    """Finds what is wrong with the chain that the game asks for, before anything is written."""
    mode = manifest.spec.coordination.mode
    if mode == "Dev":
        with chain_errors(mode):
            from swarmgame.chain.local import require_anvil

            require_anvil()
    elif mode == "External":
        resolve_endpoint(manifest)


def _check_sampler(manifest: SwarmGame) -> None:
    """Finds the program of the generation server that each peer will start."""
    options = manifest.spec.game.vllm
    if options is not None and not options.url:
        find_program(options)


@contextmanager
def _chain(
    manifest: SwarmGame, directory: RunDirectory, seats: Seats
) -> Iterator[tuple[Mapping[str, str], ChainMonitor | None]]:
    """What the peers are told of the chain, by their environment, and what looks at it; nothing of both where the game
    has none.
    """
    mode = manifest.spec.coordination.mode
    if mode == "None":
        yield {}, None
        return
    with chain_errors(mode):
        from swarmgame.chain.local import ChainMonitor, dev_chain
    with ExitStack() as stack:
        place = (
            stack.enter_context(dev_chain(directory.chain, seats.addresses))
            if mode == "Dev"
            else resolve_endpoint(manifest)
        )
        assert place is not None
        watch = ChainMonitor(place, seats.ids, directory.chain_standing, from_genesis=mode == "Dev")
        watch.start()
        yield place.environment(), watch


def _conclude(options: RunOptions, directory: RunDirectory, outcome: Outcome, say: Callable[[str], None]) -> None:
    if options.report and any(peer.metrics.exists() for peer in directory.peers().values()):
        from swarmgame.report import write_report

        summary = write_report(directory)
        if summary.sentence:
            say(summary.sentence)
    for reason in outcome.failed.values() if outcome.code is ExitCode.DONE else ():
        say(f"warning: a peer was given up on the way: {reason}")
    if outcome.message:
        say(outcome.message)
    if outcome.code is ExitCode.STOPPED:
        say("stopped; run the same command again to go on")
    say(_where(directory))


def _where(directory: RunDirectory) -> str:
    shown = directory.report if directory.report.exists() else directory.root
    try:
        return f"report: {shown.relative_to(Path.cwd())}"
    except ValueError:
        return f"report: {shown}"


def _environment(threads: int) -> Mapping[str, str]:
    return {
        **os.environ,
        "OMP_NUM_THREADS": str(threads),
        "SWARMGAME_DIE_WITH_PARENT": "1",
        "PYTHONUNBUFFERED": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }


@contextmanager
def _nothing_left_of_an_invalid_game(root: Path) -> Iterator[None]:
    """Removes the folders that this call made, if the game turns out to be invalid."""
    made = [folder for folder in (root, *root.parents) if not folder.exists()]
    try:
        yield
    except InvalidManifest:
        for folder in made:
            if folder == root and folder.exists():
                for file in ("lock", "game.yaml"):
                    (folder / file).unlink(missing_ok=True)
            if folder.exists() and not any(folder.iterdir()):
                folder.rmdir()
        raise


@contextmanager
def _stopping(supervisor: Supervisor, shown: View, say: Callable[[str], None]) -> Iterator[None]:
    """Ctrl-C and SIGTERM ask everyone to leave; a second one kills."""
    asked = 0

    def stop(number: int, frame: FrameType | None) -> None:
        nonlocal asked
        asked += 1
        supervisor.stop()
        if asked == 1:
            shown.say("leaving the swarm; press Ctrl-C again to kill at once")

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _asking(progress: Sequence[PeerProgress]) -> Iterator[None]:
    """Asks every peer for its status now and then, in a thread of its own: one that does not answer must not hold up
    the view.
    """
    done = Event()

    def ask() -> None:
        while not done.wait(ASK_SECONDS):
            for peer in progress:
                peer.ask(timeout_seconds=1.0)

    thread = Thread(target=ask, name="status", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join(timeout=5.0)
