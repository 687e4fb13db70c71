"""A fixed group of peers over torch.distributed: it finishes, resumes exactly after a kill, and no other peer joins."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import pytest
from running import (
    EXAMPLES,
    TIMEOUT_SECONDS,
    kill,
    metrics,
    peer_process,
    process_to_end,
    reproducible,
    run_to_end,
    running,
    wait_until,
)

pytestmark = pytest.mark.timeout(600)

GAME = EXAMPLES / "03-digits" / "game.yaml"
GROUP = "--set=communication.backend=TorchDistributed"
SMALL = ("--set=storage.checkpoints.everyRounds=1", "--set=game.evaluation=null", "--no-report")
PEERS, ROUNDS = 3, 60
ENDLESS = ("--rounds=1000000",)
"""For runs that are disturbed: a short one may be over before."""


def all_metrics(run: Path) -> list[list[dict[str, Any]]]:
    return [metrics(run, index) for index in range(PEERS)]


def assert_equal_so_far(run: Path, undisturbed: Path) -> None:
    """Compare the rounds of a run with those of the shorter undisturbed one; each row has the hash of the weights."""
    for peer in range(PEERS):
        rows = reproducible(metrics(run, peer))
        assert [row["round"] for row in rows] == list(range(len(rows)))
        assert all(row["weights"] for row in rows)
        assert rows[:ROUNDS] == reproducible(metrics(undisturbed, peer)), f"peer {peer}"


def share_keys(source: Path, target: Path) -> None:
    """Copy the identities of one run to another: they decide each peer's questions."""
    for index in range(PEERS):
        key = target / "peers" / str(index) / "peer.key"
        key.parent.mkdir(parents=True)
        key.write_bytes((source / "peers" / str(index) / "peer.key").read_bytes())
        key.chmod(0o600)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    runs = tmp_path_factory.mktemp("runs")
    run_to_end("run", GAME, GROUP, *SMALL, f"--peers={PEERS}", f"--rounds={ROUNDS}", "--runs", runs)
    return runs / "digits"


def test_all_peers_finish_all_rounds_together_and_train_on_each_others_groups(undisturbed: Path) -> None:
    rows = all_metrics(undisturbed)
    assert [[row["round"] for row in each] for each in rows] == [list(range(ROUNDS))] * PEERS
    assert all(len(row["members"]) == PEERS and row["closed_by"] == "quorum" for each in rows for row in each)
    assert all(any(row["external"] for row in each) for each in rows)


def test_a_killed_peer_ends_the_others_with_75_and_the_resumed_run_equals_the_undisturbed_one(
    tmp_path: Path, undisturbed: Path
) -> None:
    run = tmp_path / "digits"
    share_keys(undisturbed, run)
    with running("run", GAME, GROUP, *SMALL, f"--peers={PEERS}", *ENDLESS, "--runs", tmp_path) as runner:

        def play_until(rounds: int) -> None:
            wait_until(lambda: min(map(len, all_metrics(run))) >= rounds, f"all have finished {rounds} rounds", runner)

        play_until(3)
        for index in (0, 2):  # rank 0, where the peers meet, and another
            kill(peer_process(runner.pid, index))
            played = max(map(len, all_metrics(run)))
            assert played < ROUNDS, "the rounds after this have to be compared"
            play_until(played + 3)
        play_until(ROUNDS)
        runner.send_signal(signal.SIGINT)
        assert runner.wait(TIMEOUT_SECONDS) == 143
        output = runner.shown()
    for index in (0, 2):
        assert f"peer {index} was killed by SIGKILL; restart" in output
    for index in range(PEERS):
        assert f"peer {index} ended with exit code 75; restart" in output
    assert_equal_so_far(run, undisturbed)


def test_a_run_that_is_stopped_and_run_again_equals_the_undisturbed_one(tmp_path: Path, undisturbed: Path) -> None:
    run = tmp_path / "digits"
    share_keys(undisturbed, run)
    rarely = "--set=storage.checkpoints.everyRounds=1000"  # but always when a peer is stopped
    arguments = ("run", GAME, GROUP, *SMALL, rarely, f"--peers={PEERS}", "--runs", tmp_path)
    with running(*arguments, *ENDLESS) as runner:
        wait_until(lambda: min(map(len, all_metrics(run))) >= 3, "all have finished three rounds", runner)
        runner.send_signal(signal.SIGINT)
        assert runner.wait(TIMEOUT_SECONDS) == 143
    played = max(map(len, all_metrics(run)))
    assert played < ROUNDS, "the rounds after this have to be compared"
    run_to_end(*arguments, f"--rounds={ROUNDS}")
    assert_equal_so_far(run, undisturbed)


def test_no_peer_joins_a_fixed_group(tmp_path: Path) -> None:
    address = f"/ip4/127.0.0.1/tcp/31000/p2p/16Uiu2HAm{'2' * 44}"
    done = process_to_end("join", GAME, GROUP, "--initial-peer", address, "--directory", tmp_path / "guest", expect=78)
    assert 'spec.communication.backend is "TorchDistributed"; expected Hivemind' in done.stderr
    assert not (tmp_path / "guest").exists()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ((), "--rendezvous is ''; expected HOST:PORT"),
        (("--rendezvous=127.0.0.1",), "expected HOST:PORT"),
        (("--rendezvous=127.0.0.1:31000", "--index=4"), "--index is 4; expected less than spec.peers.replicas, 4"),
    ],
)
def test_a_peer_without_a_valid_rank_address_says_what_is_missing(
    tmp_path: Path, given: tuple[str, ...], message: str
) -> None:
    done = process_to_end("peer", GAME, GROUP, "--directory", tmp_path / "peer", *given, expect=64)
    assert message in done.stderr
