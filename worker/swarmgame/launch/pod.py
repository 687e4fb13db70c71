"""A peer in a pod: `swarmgame peer` with options from the environment, as several ranks where there are several GPUs.

torchrun ends with 1 however its ranks ended, and kills them 30 seconds after a SIGTERM; here their own exit code is
returned, and they get the grace period of the pod. Invariant: a signal to the pod reaches the ranks, and no rank
outlives this process.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from swarmgame.errors import BadData, ExitCode, InvalidManifest, writing
from swarmgame.launch.exit_record import keep_previous, recorded_exit_code, recording_exit, termination_message
from swarmgame.observability.run_directory import PeerDirectory
from swarmgame.runtime.checkpoint_manifest import intact_manifest
from swarmgame.runtime.options import PeerOptions, peer_arguments
from swarmgame_api.manifest import SwarmGame
from swarmgame_common.parent_death import VARIABLE, set_parent_death_signal

PeerProgram = Callable[[int], Sequence[str]]
"""Returns the start of a peer's command, from the number of its processes."""


@dataclass(frozen=True)
class PeerExit:
    """How a peer ended: its exit code, and a message; empty when there is nothing to add."""

    code: ExitCode
    message: str = ""


def peer_program(processes: int) -> Sequence[str]:
    """Return the start of the command of a peer with this many ranks."""
    if processes == 1:
        return (sys.executable, "-m", "swarmgame", "peer")
    torchrun = ("-m", "swarmgame.launch.loopback_torchrun", f"--nproc-per-node={processes}")
    return (sys.executable, *torchrun, "-m", "swarmgame", "peer")


def run_pod_peer(manifest: SwarmGame, game: Path, options: PeerOptions, devices: str = "") -> PeerExit:
    """Run the peer of a pod until the end of the game. One whose game is complete ends at once.

    Args:
        game: the manifest's file.
        devices: that the pod asks for and whose number is not known.
    """
    spec = manifest.spec
    if rounds_finished(options.directory) >= spec.game.max_rounds:
        exported = ""
        if spec.model is not None and spec.model.export is not None:
            from swarmgame.runtime.export_run import export_missing

            files = PeerDirectory(options.directory)
            exported = (
                ", and the policy is exported" if export_missing(manifest, game.parent, files, options.index) else ""
            )
        return PeerExit(ExitCode.DONE, f"all {spec.game.max_rounds} rounds are finished{exported}")
    processes = process_count(spec.peers.processes_per_peer, devices)
    if processes > 1:
        return run_ranks(game, options, processes, spec.termination_grace_period_seconds)
    with recording_exit(PeerDirectory(options.directory)) as record:
        from swarmgame.runtime.peer import run_peer

        code = run_peer(manifest, game.parent, options)
        record(code)
    if code is ExitCode.TEMPORARY:
        return PeerExit(code, "no other peer was left in the swarm, and the game's progression.whenAlone is Stop")
    return PeerExit(code)


def process_count(processes_per_peer: int | str, devices: str = "") -> int:
    """Return the number of ranks in this pod. `auto`: one for each CUDA device, and at least one.

    Args:
        devices: that the pod asks for; empty if it asks for none, or their number is known.

    Raises:
        InvalidManifest: `auto`, and PyTorch sees none of the devices.
    """
    if processes_per_peer != "auto":
        return int(processes_per_peer)
    import torch

    found = torch.cuda.device_count()
    if devices and not found:
        expected = (
            f"a number, because the pod has {devices} and PyTorch sees no CUDA device in it: 1 for a peer that "
            "computes on the CPU, or an image whose PyTorch knows the device"
        )
        raise InvalidManifest("spec.peers.processesPerPeer", "auto", expected)
    return max(1, found)


def rounds_finished(directory: Path) -> int:
    """Return the next round of the newest complete checkpoint of a peer; 0 without one. Loads no tensor."""
    for folder in sorted((directory / "checkpoints").glob("round-*"), reverse=True):
        try:
            manifest = intact_manifest(folder)
            if all((folder / name).stat().st_size == file["bytes"] for name, file in manifest["files"].items()):
                return int(manifest["nextRound"])
        except (BadData, OSError, KeyError, TypeError, AttributeError):
            continue  # damaged: the peer logs it and takes the one before
    return 0


def run_ranks(
    game: Path,
    options: PeerOptions,
    processes: int,
    grace_seconds: int,
    *,
    program: PeerProgram = peer_program,
) -> PeerExit:
    """Run a peer as several ranks, and return how they ended. SIGTERM and SIGINT are forwarded.

    Args:
        grace_seconds: the time of the ranks to save their state after a SIGTERM; the kubelet kills the pod after it.
        program: the tests use another one.
    """
    files = PeerDirectory(options.directory)
    with writing(files.root):
        files.root.mkdir(parents=True, exist_ok=True)
        keep_previous(files)
    if not os.environ.get("OMP_NUM_THREADS"):
        options = replace(options, threads=max(1, options.threads // processes))
    ranks = _Torchrun([*program(processes), *peer_arguments(game, options)], _environment(options, grace_seconds))
    returned = ranks.wait()
    return peer_exit_of(
        returned, recorded_exit_code(files), termination_message(files), stop_requested=ranks.stop_requested
    )


def peer_exit_of(returned: int, recorded: int | None, message: str, *, stop_requested: bool) -> PeerExit:
    """Return how a peer ended, from torchrun's exit code and the exit code that the first rank recorded."""
    if returned == 0:
        return PeerExit(ExitCode.DONE)
    if recorded is None and stop_requested:
        return PeerExit(ExitCode.STOPPED)
    if recorded is None or (recorded == ExitCode.STOPPED and not stop_requested):
        # One rank was killed from outside, and torchrun then stopped the others.
        return PeerExit(
            ExitCode.TEMPORARY,
            "a rank of this peer was killed (out of memory?); run again, it goes on from its last checkpoint",
        )
    code = ExitCode(recorded) if recorded in set(ExitCode) else ExitCode.INTERNAL
    if not message and code is not ExitCode.STOPPED:
        message = f"the peer ended with exit code {recorded}; see its log"
    return PeerExit(code, message)


class _Torchrun:
    """torchrun, as a child that ends with this process."""

    def __init__(self, command: Sequence[str], environment: Mapping[str, str]) -> None:
        self.stop_requested = False
        self._child: subprocess.Popen[bytes] | None = None
        # Before the child: a signal in between must not be lost.
        self._before = {number: signal.signal(number, self._forward) for number in (signal.SIGTERM, signal.SIGINT)}
        self._child = subprocess.Popen(
            command, env=dict(environment), start_new_session=True, preexec_fn=set_parent_death_signal
        )
        if self.stop_requested:
            self._child.terminate()

    def wait(self) -> int:
        assert self._child is not None
        try:
            return self._child.wait()
        finally:
            for number, handler in self._before.items():
                signal.signal(number, handler)

    def _forward(self, number: int, frame: object) -> None:
        self.stop_requested = True
        if self._child is not None:
            self._child.send_signal(signal.SIGTERM)


def _environment(options: PeerOptions, grace_seconds: int) -> dict[str, str]:
    return {
        **os.environ,
        "OMP_NUM_THREADS": str(options.threads),
        # By itself torchrun kills its ranks 30 seconds after a SIGTERM.
        "TORCH_ELASTIC_SHUTDOWN_TIMEOUT": str(max(1, grace_seconds)),
        VARIABLE: "1",
    }
