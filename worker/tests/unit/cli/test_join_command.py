"""How `swarmgame join` uses the machine that other peers may use as well."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from swarmgame.cli import main as cli
from swarmgame.errors import ExitCode
from swarmgame.launch import join as launch_join
from swarmgame.launch.join import JoinOptions
from swarmgame.swarm.identity import Identity, dial_address
from swarmgame_api.manifest import SwarmGame

GAME = Path(__file__).parents[4] / "examples" / "01-quickstart" / "game.yaml"
CORES = len(os.sched_getaffinity(0))


@pytest.mark.parametrize(
    ("arguments", "variable", "threads"),
    [((), None, CORES), ((), "1", 1), (("--threads", "3"), "1", 3)],
)
def test_a_peer_that_joins_uses_as_many_threads_as_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], variable: str | None, threads: int
) -> None:
    started: list[JoinOptions] = []

    def join_swarm(manifest: SwarmGame, options: JoinOptions, *, notify: Callable[[str], None]) -> ExitCode:
        started.append(options)
        return ExitCode.DONE

    monkeypatch.setattr(launch_join, "join_swarm", join_swarm)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if variable is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", variable)
    member = dial_address(Identity.named("bob").peer, 4002)
    code = cli.run_command(["join", str(GAME), "--initial-peer", member, "--directory", str(tmp_path), *arguments])
    assert code == ExitCode.DONE
    assert [options.peer.threads for options in started] == [threads]


@pytest.mark.parametrize("given", [None, "ACTIVE"])
def test_a_thread_that_waits_leaves_its_core_to_others_unless_the_user_says_otherwise(
    monkeypatch: pytest.MonkeyPatch, given: str | None
) -> None:
    monkeypatch.setenv("OMP_WAIT_POLICY", "kept for the end of the test")
    monkeypatch.delenv("OMP_WAIT_POLICY")
    if given is not None:
        monkeypatch.setenv("OMP_WAIT_POLICY", given)
    monkeypatch.setattr(cli, "follow_parent", lambda: None)
    monkeypatch.setattr("swarmgame.cli.main.signal.signal", lambda *_: None)
    with pytest.raises(SystemExit, match="0"):
        cli.main(["--version"])
    assert os.environ["OMP_WAIT_POLICY"] == (given or "PASSIVE")
