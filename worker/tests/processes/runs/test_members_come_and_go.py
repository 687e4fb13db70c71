"""Peers die, come back, join and leave while the others go on."""

from __future__ import annotations

import json
import signal
import time
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import pytest
from running import EXAMPLES, kill, metrics, peer_process, running, wait_until

pytestmark = pytest.mark.timeout(600)

GAME = EXAMPLES / "03-digits" / "game.yaml"
ENDLESS = ("--rounds=1000000", "--set=storage.checkpoints.everyRounds=1", "--no-report")
UNHURRIED = ("--set=game.data.with.questionsPerRound=256", "--set=game.trainer.with.generations=64")
"""Rounds of a few tenths of a second, so that two rounds are more than the time of a start."""


def last_round(run: Path, index: int) -> int:
    rows = metrics(run, index)
    return int(rows[-1]["round"]) if rows else -1


def rounds_behind(row: dict[str, Any], others: list[dict[str, Any]]) -> int:
    """Return how many rounds more than this peer the others had finished when the round began."""
    began = row["time"] - row["seconds"]["round"]
    return int([other for other in others if other["time"] <= began][-1]["round"]) - (row["round"] - 1)


def status(directory: Path) -> dict[str, Any]:
    """Return the answer of /status."""
    port = json.loads((directory / "http.json").read_text())["port"]
    with urlopen(f"http://127.0.0.1:{port}/status", timeout=10) as answer:
        return dict(json.load(answer))


@pytest.mark.parametrize("quorum", [["--set=game.progression.quorum=67%"], []], ids=["67 %", "all peers"])
def test_a_peer_of_four_that_is_killed_is_back_within_two_rounds_with_its_identity_and_weights(
    tmp_path: Path, quorum: list[str]
) -> None:
    run = tmp_path / "digits"
    with running("run", GAME, *ENDLESS, *UNHURRIED, *quorum, "--runs", tmp_path) as runner:
        wait_until(lambda: min(last_round(run, index) for index in range(4)) >= 5, "all four have played", runner)
        kill(peer_process(runner.pid, 3))
        killed_at = time.time()
        before = metrics(run, 3)[-1]
        wait_until(lambda: last_round(run, 0) >= before["round"] + 3, "the others go on without it", runner)
        # What it had not yet saved when it was killed is played again, if the swarm is still there; what counts is
        # what is new.
        wait_until(
            lambda: any(row["time"] > killed_at for row in metrics(run, 3)), "the killed peer plays again", runner
        )
        again = next(row for row in metrics(run, 3) if row["time"] > killed_at)
        # It is back where the swarm is.
        assert rounds_behind(again, metrics(run, 0)) <= 2
        assert again["peer"] == before["peer"]
        # Its weights are those of the checkpoint: one update older than before at the most, one newer by this round.
        assert before["policy_version"] - 1 <= again["policy_version"] - 1 <= before["policy_version"] + 1
        assert len(again["members"]) == 4

        def used() -> bool:
            return any(again["peer"] in row["external"] for row in metrics(run, 0) if row["round"] >= again["round"])

        wait_until(used, "the others learn from it again", runner)
        runner.send_signal(signal.SIGINT)
        assert runner.wait(timeout=60) == 143


def test_a_peer_joins_with_an_address_takes_part_within_two_rounds_and_leaves(tmp_path: Path) -> None:
    run, joined = tmp_path / "digits", tmp_path / "joined"
    with running("run", GAME, *ENDLESS, *UNHURRIED, "--peers=2", "--runs", tmp_path) as runner:
        wait_until(lambda: min(last_round(run, index) for index in range(2)) >= 2, "both have played", runner)
        address = status(run / "peers" / "0")["addresses"][0]
        with running(
            "join", GAME, *ENDLESS, *UNHURRIED, "--initial-peer", address, "--directory", joined, "--port=0"
        ) as joiner:
            wait_until(lambda: len(metrics(joined, 0)) >= 2, "the joined peer plays", joiner)
            rows = metrics(joined, 0)
            me = rows[0]["peer"]
            assert rows[0]["round"] >= 2
            assert rounds_behind(rows[0], metrics(run, 0)) <= 2
            assert len(rows[1]["members"]) == 3
            wait_until(
                lambda: any(me in row["external"] for row in metrics(run, 0)),
                "the others train on its rollouts",
                runner,
            )
            assert any(row["external"] for row in metrics(joined, 0)), "it trains on those of the others"
            joiner.send_signal(signal.SIGINT)
            assert joiner.wait(timeout=60) == 143
        left_at = last_round(run, 0)
        wait_until(
            lambda: last_round(run, 0) > left_at + 1 and len(metrics(run, 0)[-1]["members"]) == 2,
            "the others go on as two",
            runner,
        )


def test_the_last_of_two_peers_reports_that_it_is_isolated_and_stops_if_the_manifest_says_so(tmp_path: Path) -> None:
    run = tmp_path / "digits"
    alone = (
        "--set=game.progression.whenAlone=Stop",
        "--set=failurePolicy.backoffLimitPerPeer=0",
        "--set=failurePolicy.maxFailedPeers=1",
    )
    with running("run", GAME, *ENDLESS, "--peers=2", *alone, "--runs", tmp_path) as runner:
        wait_until(lambda: min(last_round(run, index) for index in range(2)) >= 2, "both have played", runner)
        kill(peer_process(runner.pid, 1))
        wait_until(
            lambda: "this peer is alone" in (run / "peers" / "0" / "log.jsonl").read_text(), "the last one reports it"
        )
        assert runner.wait(timeout=120) == 75
    assert metrics(run, 0)[-1]["closed_by"] == "alone"
