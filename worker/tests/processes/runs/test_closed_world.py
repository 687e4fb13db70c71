"""A swarm over torch.distributed: it plays to its end, outlives whoever is killed, and lets nobody in."""

from __future__ import annotations

import signal
import time
from pathlib import Path
from typing import Any

import pytest
from running import EXAMPLES, kill, metrics, peer_process, run_to_end, running, wait_until

pytestmark = pytest.mark.timeout(600)

GAME = EXAMPLES / "03-digits" / "game.yaml"
CLOSED = "--set=communication.backend=TorchDistributed"
SMALL = ("--set=storage.checkpoints.everyRounds=1", "--set=game.evaluation=null", "--no-report")


def played(run: Path, peers: int) -> list[list[dict[str, Any]]]:
    return [metrics(run, index) for index in range(peers)]


def test_peers_of_a_closed_world_play_equally_many_rounds_and_learn_from_one_another(tmp_path: Path) -> None:
    everyone = (
        "--set=game.progression.quorum=100%"  # with less, a peer that is slow to start is left behind, as it should be
    )
    run_to_end("run", GAME, CLOSED, *SMALL, everyone, "--peers=3", "--rounds=6", "--runs", tmp_path)
    rows = played(tmp_path / "digits", 3)
    assert [[row["round"] for row in each] for each in rows] == [list(range(6))] * 3
    assert all(len(row["members"]) == 3 and row["closed_by"] == "quorum" for each in rows for row in each)
    assert all(any(row["external"] for row in each) for each in rows)


@pytest.mark.parametrize("index", [0, 2], ids=["host", "other"])
def test_a_peer_that_is_killed_takes_its_seat_again_be_it_the_host_of_the_store(tmp_path: Path, index: int) -> None:
    run = tmp_path / "digits"
    with running("run", GAME, CLOSED, *SMALL, "--peers=3", "--rounds=1000000", "--runs", tmp_path) as runner:
        wait_until(lambda: min(len(each) for each in played(run, 3)) >= 2, "all three have played", runner)
        kill(peer_process(runner.pid, index))
        killed_at = time.time()
        before = metrics(run, index)[-1]

        def whole_again() -> bool:
            rows = [each[-1] for each in played(run, 3)]
            return rows[index]["time"] > killed_at and all(len(row["members"]) == 3 for row in rows)

        wait_until(lambda: metrics(run, 1)[-1]["round"] >= before["round"] + 3, "the others go on without it", runner)
        wait_until(whole_again, "it plays with them again", runner)
        again = metrics(run, index)[-1]
        assert again["peer"] == before["peer"]
        wait_until(
            lambda: any(before["peer"] in row["external"] for row in metrics(run, 1) if row["round"] >= again["round"]),
            "the others learn from it again",
            runner,
        )
        runner.send_signal(signal.SIGINT)
        assert runner.wait(timeout=60) == 143


def test_nobody_joins_a_closed_world(tmp_path: Path) -> None:
    address = f"/ip4/127.0.0.1/tcp/31000/p2p/16Uiu2HAm{'2' * 44}"
    done = run_to_end("join", GAME, CLOSED, "--initial-peer", address, "--directory", tmp_path / "guest", expect=78)
    assert 'spec.communication.backend is "TorchDistributed"; expected Hivemind' in done.stderr
    assert not (tmp_path / "guest").exists()


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ((), "--rendezvous is ''; expected HOST:PORT"),
        (("--rendezvous=127.0.0.1",), "expected HOST:PORT"),
        (("--rendezvous=127.0.0.1:31000", "--index=4"), "peer 4 has no seat"),
    ],
)
def test_a_peer_that_was_not_told_its_place_says_what_is_missing(
    tmp_path: Path, given: tuple[str, ...], words: str
) -> None:
    done = run_to_end("peer", GAME, CLOSED, "--directory", tmp_path / "peer", *given, expect=64)
    assert words in done.stderr
