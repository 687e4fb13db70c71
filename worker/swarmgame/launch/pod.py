"""What a peer's pod needs beyond a peer: several ranks under torchrun, the last word for the kubelet, and knowing that
all is done.

It plays nothing itself. torchrun ends with 1 however its ranks ended, and kills them half a minute after a SIGTERM;
here their own exit code comes through, and they get the whole grace of the pod. Invariant: a signal that the pod gets
reaches the ranks, and no rank outlives us.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from swarmgame.errors import BadUsage, ExitCode
from swarmgame.launch.local import peer_program
from swarmgame.launch.supervisor import recorded_exit_code, set_parent_death_signal, termination_message
from swarmgame.observability.run_directory import PeerDirectory

TERMINATION_LOG = Path("/dev/termination-log")
TERMINATION_VARIABLE = "SWARMGAME_TERMINATION_LOG"
MAX_CHARACTERS = 1_024
"""Of the last word; the kubelet takes 4096 bytes."""


@dataclass(frozen=True)
class PeerExit:
    """How a peer ended: its exit code, and what to say of it; empty when there is nothing to say."""

    code: ExitCode
    message: str = ""


def process_count(asked: str) -> int:
    """How many ranks a peer has in this pod. `auto`: as many as there are CUDA devices, and at least one.

    Raises:
        BadUsage: it is neither `auto` nor a number.
    """
    if asked == "auto":
        import torch

        return max(1, torch.cuda.device_count())
    if not asked.isdecimal() or not 1 <= int(asked) <= 64:
        raise BadUsage(f"the number of processes is {asked!r}; expected auto, or a number from 1 to 64")
    return int(asked)


def rounds_finished(directory: Path) -> int:
    """The round that the newest whole checkpoint in a peer's directory would go on with; 0 without one. Loads no
    tensor.
    """
    for folder in sorted((directory / "checkpoints").glob("round-*"), reverse=True):
        try:
            manifest = json.loads((folder / "manifest.json").read_bytes())
            if all((folder / name).stat().st_size == file["bytes"] for name, file in manifest["files"].items()):
                return int(manifest["nextRound"])
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            continue  # torn: the peer itself would say so, and take the one before
    return 0


def run_ranks(
    game: Path,
    directory: Path,
    processes: int,
    grace_seconds: int,
    *,
    program: Callable[[int], Sequence[str]] = peer_program,
) -> PeerExit:
    """Runs a peer as several ranks, and returns how they ended. SIGTERM and SIGINT are handed on.

    Args:
        grace_seconds: what the ranks get to save themselves after a SIGTERM; whoever waits for us kills all of us when
            it is over.
        program: the start of the command, from the number of processes; the tests put another one in its place.
    """
    files = PeerDirectory(directory)
    directory.mkdir(parents=True, exist_ok=True)
    files.exit.unlink(missing_ok=True)
    ranks = _Ranks([*program(processes), str(game)], _environment(processes, grace_seconds))
    returned = ranks.wait()
    return peer_exit_of(
        returned, recorded_exit_code(files), termination_message(files), asked_to_stop=ranks.asked_to_stop
    )


def peer_exit_of(returned: int, own: int | None, message: str, *, asked_to_stop: bool) -> PeerExit:
    """What the end of torchrun means, given the first rank's own word."""
    if returned == 0:
        return PeerExit(ExitCode.DONE)
    if own is None and asked_to_stop:
        return PeerExit(ExitCode.STOPPED)
    if own is None or (own == ExitCode.STOPPED and not asked_to_stop):
        # Killed from outside; the others were then told to stop, by torchrun.
        return PeerExit(
            ExitCode.TEMPORARY,
            "a rank of this peer was killed (out of memory?); run again, it goes on from its last checkpoint",
        )
    code = ExitCode(own) if own in set(ExitCode) else ExitCode.INTERNAL
    return PeerExit(
        code, message or ("" if code is ExitCode.STOPPED else f"the peer ended with exit code {own}; its log says why")
    )


def write_termination_message(message: str, environment: Mapping[str, str] = os.environ) -> None:
    """Leaves one line where the kubelet looks for the reason of a container's end; nowhere, outside a pod."""
    named = environment.get(TERMINATION_VARIABLE)
    path = Path(named) if named else TERMINATION_LOG
    if not named and not path.exists():
        return
    line = "; ".join(part.strip() for part in message.splitlines() if part.strip())[:MAX_CHARACTERS]
    try:
        path.write_text(line + "\n", encoding="utf-8")
    except OSError as error:
        print(f"{path} cannot be written: {error.strerror}", file=sys.stderr)


class _Ranks:
    """torchrun, as a child that ends with us."""

    def __init__(self, command: Sequence[str], environment: Mapping[str, str]) -> None:
        self.asked_to_stop = False
        self._child: subprocess.Popen[bytes] | None = None
        # Before the child: a signal in between must not be lost.
        self._before = {number: signal.signal(number, self._hand_on) for number in (signal.SIGTERM, signal.SIGINT)}
        self._child = subprocess.Popen(
            command, env=dict(environment), start_new_session=True, preexec_fn=set_parent_death_signal
        )
        if self.asked_to_stop:
            self._child.terminate()

    def wait(self) -> int:
        assert self._child is not None
        try:
            return self._child.wait()
        finally:
            for number, handler in self._before.items():
                signal.signal(number, handler)

    def _hand_on(self, number: int, frame: object) -> None:
        self.asked_to_stop = True
        if self._child is not None:
            self._child.send_signal(signal.SIGTERM)


def _environment(processes: int, grace_seconds: int) -> dict[str, str]:
    return {
        **os.environ,
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS") or str(max(1, len(os.sched_getaffinity(0)) // processes)),
        # Of itself torchrun kills its ranks 30 seconds after a SIGTERM.
        "TORCH_ELASTIC_SHUTDOWN_TIMEOUT": str(max(1, grace_seconds)),
        "SWARMGAME_DIE_WITH_PARENT": "1",
    }
