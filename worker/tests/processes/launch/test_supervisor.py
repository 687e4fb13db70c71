"""The supervisor, with processes that stand in for peers."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pytest

from swarmgame.errors import ExitCode
from swarmgame.launch.exit_record import termination_message
from swarmgame.launch.peer_end import PeerEnd
from swarmgame.launch.supervisor import ProcessState, RestartPolicy, RunOutcome, Supervisor
from swarmgame.observability.run_directory import PeerDirectory

FakePeer = Callable[[str], Sequence[str]]
QUICK = RestartPolicy(restarts=2, failed_peers=0, grace_seconds=20.0, first_delay_seconds=0.0)


class Run:
    def __init__(
        self, root: Path, fake_peer: FakePeer, fault: str, *, peers: int = 2, restart_policy: RestartPolicy = QUICK
    ) -> None:
        self.directories = {index: PeerDirectory(root / str(index)) for index in range(peers)}
        self.ends: list[PeerEnd] = []
        self.commands: list[tuple[int, bool]] = []

        def command(index: int, restart: bool) -> Sequence[str]:
            self.commands.append((index, restart))
            return [*fake_peer(fault), f"--index={index}", f"--directory={self.directories[index].root}"]

        self.supervisor = Supervisor(
            self.directories,
            command,
            environment=lambda index: {**os.environ, "PEER_OF_TEST": str(index)},
            restart_policy=restart_policy,
            notify=self.ends.append,
        )

    def until_end(self, tick: Callable[[], None] = lambda: None) -> RunOutcome:
        return self.supervisor.run(tick)

    def rounds(self, index: int) -> int:
        path = self.directories[index].metrics
        return len(path.read_text().splitlines()) if path.exists() else 0

    def ready(self) -> bool:
        return all((directory.root / "ready").exists() for directory in self.directories.values())

    @property
    def messages(self) -> list[str]:
        return [str(end) for end in self.ends]

    def log(self, index: int) -> str:
        return f"  log: {self.directories[index].output}"

    @property
    def states(self) -> Mapping[int, ProcessState]:
        return self.supervisor.states


def test_a_run_without_failures_is_done(tmp_path: Path, fake_peer: FakePeer) -> None:
    run = Run(tmp_path, fake_peer, "good")
    outcome = run.until_end()
    assert (outcome.code, outcome.restarts, outcome.failed) == (ExitCode.DONE, 0, {})
    assert [run.rounds(0), run.rounds(1)] == [5, 5]
    assert set(run.states.values()) == {ProcessState.FINISHED}


def test_a_peer_that_dies_by_a_signal_is_restarted_and_nothing_is_lost(tmp_path: Path, fake_peer: FakePeer) -> None:
    run = Run(tmp_path, fake_peer, "killed-once")
    outcome = run.until_end()
    assert (outcome.code, outcome.restarts) == (ExitCode.DONE, 1)
    assert [run.rounds(0), run.rounds(1)] == [5, 5]
    assert run.commands == [(0, False), (1, False), (1, True)]
    assert run.messages == [f"peer 1 was killed by SIGKILL; restart 1 of at most 2\n{run.log(1)}"]


def test_a_temporary_failure_is_tried_again(tmp_path: Path, fake_peer: FakePeer) -> None:
    run = Run(tmp_path, fake_peer, "temporary-once")
    assert run.until_end().code is ExitCode.DONE
    assert run.messages == [
        f"peer 0 ended with exit code 75; restart 1 of at most 2\n  the port is taken\n{run.log(0)}"
    ]


def test_an_error_that_comes_again_is_shown_once(tmp_path: Path, fake_peer: FakePeer) -> None:
    run = Run(tmp_path, fake_peer, "temporary", peers=1)
    assert run.until_end().code is ExitCode.TEMPORARY
    assert run.messages == [
        f"peer 0 ended with exit code 75; restart 1 of at most 2\n  the port is taken\n{run.log(0)}",
        "peer 0 ended with exit code 75; restart 2 of at most 2; the same error again",
    ]


def test_a_full_disk_ends_the_run_at_once_with_75(tmp_path: Path, fake_peer: FakePeer) -> None:
    run = Run(tmp_path, fake_peer, "full-disk")
    outcome = run.until_end()
    assert (outcome.code, outcome.restarts) == (ExitCode.TEMPORARY, 0)
    assert outcome.message == f"peer 0 ended with exit code 75\n  no space is left on the device\n{run.log(0)}"


def test_game_code_that_exits_with_0_does_not_count_as_a_finished_game(tmp_path: Path, fake_peer: FakePeer) -> None:
    run = Run(tmp_path, fake_peer, "exits-with-0", peers=1)
    outcome = run.until_end()
    assert (outcome.code, outcome.restarts) == (ExitCode.INTERNAL, 2)
    assert "SystemExit: 0 at game.py:3, in rewards (in round 1)" in outcome.message


def test_the_end_of_a_process_is_one_json_object_for_machines(tmp_path: Path, fake_peer: FakePeer) -> None:
    run = Run(tmp_path, fake_peer, "exits-with-0", peers=1)
    run.until_end()
    assert [end.as_json() for end in run.ends] == [
        {
            "event": "peer-ended",
            "peer": 0,
            "code": 1,
            "message": "SystemExit: 0 at game.py:3, in rewards (in round 1)",
            "failure": {
                "kind": "SystemExit",
                "message": "0",
                "where": "game.py:3",
                "function": "rewards",
                "round": 1,
                "of_game": True,
            },
            "restart": restart,
            "restarts": 2,
            "given_up": False,
            "log": str(run.directories[0].output),
        }
        for restart in (1, 2)
    ]


def test_each_peer_has_an_environment_of_its_own(tmp_path: Path, fake_peer: FakePeer) -> None:
    run = Run(tmp_path, fake_peer, "good")
    run.until_end()
    assert [(each.root / "environment").read_text() for each in run.directories.values()] == ["0", "1"]


def test_bad_config_ends_the_run_at_once_with_its_code_and_the_peers_message(
    tmp_path: Path, fake_peer: FakePeer
) -> None:
    run = Run(tmp_path, fake_peer, "bad-config", peers=3)
    outcome = run.until_end()
    assert outcome.code is ExitCode.BAD_CONFIG
    expected = "  spec.game.data.use is 'nonsense'; expected something else"
    assert outcome.message == f"peer 1 ended with exit code 78\n{expected}\n{run.log(1)}"
    assert run.states == {0: ProcessState.STOPPED, 1: ProcessState.FAILED, 2: ProcessState.STOPPED}


def test_the_exit_code_that_a_rank_recorded_counts_because_torchrun_hides_it(
    tmp_path: Path, fake_peer: FakePeer
) -> None:
    outcome = Run(tmp_path, fake_peer, "under-torchrun").until_end()
    assert outcome.code is ExitCode.BAD_CONFIG
    assert "recorded by a rank" in outcome.message


def test_restarts_are_bounded_and_then_the_run_ends(tmp_path: Path, fake_peer: FakePeer) -> None:
    run = Run(tmp_path, fake_peer, "always-killed")
    outcome = run.until_end()
    assert (outcome.code, outcome.restarts) == (ExitCode.TEMPORARY, 2)
    assert outcome.message.startswith("peer 1 was killed by SIGKILL, after 2 restarts; 1 of 2 peers have failed")
    assert "hello from 1" in outcome.message


def test_a_run_goes_on_with_a_failed_peer_when_the_manifest_allows_it(tmp_path: Path, fake_peer: FakePeer) -> None:
    restart_policy = RestartPolicy(restarts=1, failed_peers=1, grace_seconds=20.0, first_delay_seconds=0.0)
    run = Run(tmp_path, fake_peer, "always-killed", restart_policy=restart_policy)
    outcome = run.until_end()
    assert outcome.code is ExitCode.DONE
    assert list(outcome.failed) == [1]
    assert "after 1 restarts; it is given up, and the run goes on without it" in run.messages[-1]
    assert run.states == {0: ProcessState.FINISHED, 1: ProcessState.FAILED}


def test_an_internal_error_shows_the_end_of_its_traceback(tmp_path: Path, fake_peer: FakePeer) -> None:
    outcome = Run(tmp_path, fake_peer, "traceback", peers=1).until_end()
    assert outcome.code is ExitCode.INTERNAL
    assert "RuntimeError: an internal error" in outcome.message


def test_a_stop_lets_all_peers_leave(tmp_path: Path, fake_peer: FakePeer) -> None:
    run = Run(tmp_path, fake_peer, "endless")
    outcome = run.until_end(
        lambda: run.supervisor.stop() if run.ready() and ProcessState.STOPPED not in run.states.values() else None
    )
    assert (outcome.code, outcome.message) == (ExitCode.STOPPED, "")
    assert set(run.states.values()) == {ProcessState.STOPPED}


def test_a_peer_that_ignores_the_stop_is_killed_after_the_grace_period(tmp_path: Path, fake_peer: FakePeer) -> None:
    run = Run(tmp_path, fake_peer, "ignores-stop", restart_policy=RestartPolicy(grace_seconds=0.3))
    stopped = False

    def stop_once() -> None:
        nonlocal stopped
        if run.ready() and not stopped:
            stopped = True
            run.supervisor.stop()

    assert run.until_end(stop_once).code is ExitCode.STOPPED


def test_a_second_stop_does_not_wait_for_the_grace_period(tmp_path: Path, fake_peer: FakePeer) -> None:
    run = Run(tmp_path, fake_peer, "ignores-stop", restart_policy=RestartPolicy(grace_seconds=3600.0))
    assert run.until_end(lambda: run.supervisor.stop() if run.ready() else None).code is ExitCode.STOPPED


def test_processes_that_a_peer_started_do_not_outlive_it(tmp_path: Path) -> None:
    directory = PeerDirectory(tmp_path / "0")
    script = "import subprocess, sys; p = subprocess.Popen(['sleep', '3600']); open(sys.argv[1], 'w').write(str(p.pid))"
    command = [sys.executable, "-S", "-E", "-c", script, str(tmp_path / "helper")]
    supervisor = Supervisor(
        {0: directory}, lambda index, restart: command, environment=lambda index: os.environ, restart_policy=QUICK
    )
    assert supervisor.run().code is ExitCode.DONE
    helper = int((tmp_path / "helper").read_text())
    _wait_for(lambda: _gone(helper))


def test_peers_do_not_outlive_a_runner_that_is_killed(tmp_path: Path) -> None:
    runner = textwrap.dedent(
        """
        import os, sys
        from pathlib import Path
        from swarmgame.observability.run_directory import PeerDirectory
        from swarmgame.launch.supervisor import RestartPolicy, Supervisor
        child = [sys.executable, "-S", "-E", "-c", "import os, time; print(os.getpid(), flush=True); time.sleep(3600)"]
        directory = PeerDirectory(Path(sys.argv[1]))
        policy = RestartPolicy()
        Supervisor({0: directory}, lambda i, r: child, environment=lambda i: os.environ, restart_policy=policy).run()
        """
    )
    process = subprocess.Popen([sys.executable, "-c", runner, str(tmp_path)])
    try:
        output = PeerDirectory(tmp_path).output
        _wait_for(lambda: output.exists() and output.read_text().endswith("\n"))
    finally:
        process.kill()
        process.wait()
    child = int(output.read_text())
    _wait_for(lambda: _gone(child))


def test_the_termination_message_is_the_recorded_one_or_the_end_of_the_output(tmp_path: Path) -> None:
    directory = PeerDirectory(tmp_path)
    directory.output.write_text("\n".join(f"line {number}" for number in range(10_000)))
    assert termination_message(directory).splitlines() == [f"line {number}" for number in range(9_985, 10_000)]
    directory.exit.write_text('{"code": 78, "message": "what is wrong"}')
    assert termination_message(directory) == "what is wrong"


@pytest.mark.parametrize(("restart", "seconds"), [(1, 0.25), (2, 0.5), (5, 4.0), (20, 30.0)])
def test_the_delay_before_a_restart_doubles_up_to_a_bound(restart: int, seconds: float) -> None:
    assert RestartPolicy().delay(restart) == seconds


def _gone(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as stat:
            return stat.read().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


def _wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 240
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.01)
