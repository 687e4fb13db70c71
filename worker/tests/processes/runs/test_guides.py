"""Every command of the guides for authors runs, in the order of the page, as a reader would type it."""

from __future__ import annotations

import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from guides import GUIDES, blocks, commands
from running import EXAMPLES, TIMEOUT_SECONDS, environment, metrics, reachable, run_to_end, running, wait_until

from swarmgame.swarm.identity import Identity

pytestmark = pytest.mark.timeout(600)


def run_pytest(arguments: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    """Run pytest in a folder, where it must find no mistake."""
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        env={key: value for key, value in environment().items() if not key.startswith("PYTEST")},
        timeout=TIMEOUT_SECONDS,
        check=False,
    )
    assert done.returncode == 0, f"{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done


def follow(page: str, folder: Path, *, but: tuple[str, ...] = (), rounds: int | None = None) -> str:
    """Run the commands of a page, and return their output.

    Args:
        but: beginnings of commands that are left out.
        rounds: of each `run`, instead of the page's.
    """
    output = ""
    ran = 0
    for line in commands(GUIDES / f"{page}.md"):
        program, *arguments = shlex.split(line)
        if line.startswith(but or ("\0",)):
            continue
        if program == "cd":
            folder = folder / arguments[0]
            continue
        assert program in ("swarmgame", "pytest"), line
        if rounds is not None and arguments[:1] == ["run"]:
            arguments.append(f"--rounds={rounds}")
        ran += 1
        done = run_to_end(*arguments, folder=folder) if program == "swarmgame" else run_pytest(arguments, folder)
        output += done.stdout + done.stderr
    assert ran
    return output


def test_a_first_game_is_made_checked_run_read_and_exported(tmp_path: Path) -> None:
    shown = follow("first-game", tmp_path, rounds=3)
    folder = tmp_path / "my-game"
    assert "5 passed" in shown
    assert "32 held-out questions" in shown
    assert "one more peer joins on this machine with (--host 0.0.0.0 lets other machines join):" in shown
    assert (folder / "my-model" / "model.safetensors").exists()
    assert (folder / "runs" / "my-game" / "report.html").exists()
    follow("write-a-game", folder)
    assert len(metrics(folder / "runs" / "try", 1)) == 3
    follow("read-a-report", folder)


def test_the_trainer_of_the_guide_resumes_exactly_is_replayed_and_exported(tmp_path: Path) -> None:
    code = next(text for text in blocks(GUIDES / "trainers.md", "python") if "class Linear(Trainer)" in text)
    manifest = next(text for text in blocks(GUIDES / "trainers.md", "yaml") if text.startswith("apiVersion"))
    (tmp_path / "linear.py").write_text(code)
    (tmp_path / "game.yaml").write_text(manifest)
    shown = follow("trainers", tmp_path)
    assert "6 rounds (0 to 5) from the initial model: equal weights" in shown
    assert (tmp_path / "my-policy" / "policy.safetensors").exists()
    rows = metrics(tmp_path / "runs" / "linear", 0)
    assert [row["round"] for row in rows] == list(range(6))
    assert any(row["external"] for row in rows)
    assert rows[-1]["policy_version"] == 6


def test_the_environment_of_the_guide_is_checked_and_played(tmp_path: Path) -> None:
    (code,), (manifest,) = (blocks(GUIDES / "write-an-environment.md", language) for language in ("python", "yaml"))
    (tmp_path / "lock.py").write_text(code)
    (tmp_path / "game.yaml").write_text(manifest)
    shown = follow("write-an-environment", tmp_path, rounds=3)
    assert "the environment gave the same in two plays of 12 questions" in shown
    rows = metrics(tmp_path / "runs" / "lock", 0)
    assert [row["round"] for row in rows] == [0, 1, 2]
    assert all(row["turns"] > 1 and row["external"] for row in rows)
    assert not any("transcript-mismatch" in row["outcomes"] for row in rows)


def test_the_game_of_two_players_of_the_guide_is_played_to_the_end_and_its_moves_are_shared(tmp_path: Path) -> None:
    page = GUIDES / "agents-against-each-other.md"
    (code,), (manifest,) = (blocks(page, language) for language in ("python", "yaml"))
    (tmp_path / "tictactoe.py").write_text(code)
    (tmp_path / "game.yaml").write_text(manifest)
    shown = follow("agents-against-each-other", tmp_path, rounds=3)
    assert "tictactoe is valid" in shown
    dropped = {"prompt-mismatch", "words-only", "illegal-move", "role-without-taker", "prompt-failed"}
    for peer in range(2):
        rows = metrics(tmp_path / "runs" / "tictactoe", peer)
        assert [row["round"] for row in rows] == [0, 1, 2]
        assert not any(dropped & set(row["outcomes"]) for row in rows)
        assert all(sum(row["external"].values()) >= 64 for row in rows)


def test_a_peer_is_hosted_and_others_join_by_the_commands_of_the_guide(tmp_path: Path) -> None:
    run, peer, first, second = [
        [each.replace("game.yaml", str(EXAMPLES / "03-digits" / "game.yaml")) for each in shlex.split(line)[1:]]
        for line in (
            each
            for start in ("run", "peer", "join")
            for each in commands(GUIDES / "join-a-swarm.md")
            if each.startswith(f"swarmgame {start}")
        )
    ]
    assert (run[0], run[2:]) == ("run", ["--host", "0.0.0.0"])
    assert (peer[0], first[0], second[0]) == ("peer", "join", "join")
    endless = "--set=spec.game.maxRounds=1000000"
    at_any_port = ["0" if each in ("31000", "31001") else each for each in peer]
    with running(*at_any_port, endless, f"--directory={tmp_path / 'host'}") as host:
        addresses = reachable(host)["addresses"]
        key = Identity.load(tmp_path / "host" / "peer.key").peer
        assert all(address.endswith(f"/p2p/{key}") for address in addresses)
        for number, command in enumerate((first, second)):
            options = [{"ADDRESS": addresses[0], "31001": "0"}.get(each, each) for each in command]
            options = [each.replace("/dns4/me.example.org", "/ip4/127.0.0.1") for each in options]
            joined = tmp_path / f"joined-{number}"
            with running(*options, endless, f"--directory={joined}") as joiner:
                shown = reachable(joiner)
                assert ("31001" in shown["addresses"][0]) == (command is second)
                wait_until(
                    lambda joined=joined: any(row["external"] for row in metrics(joined, 0)),  # type: ignore[misc]
                    "it trains on what the host generated",
                    joiner,
                )
                joiner.terminate()
                assert joiner.wait(TIMEOUT_SECONDS) == 143
        host.terminate()
        assert host.wait(TIMEOUT_SECONDS) == 143
