"""Peers die, come back, join and leave while the others go on."""

from __future__ import annotations

import json
import shlex
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import pytest
from running import (
    EXAMPLES,
    TIMEOUT_SECONDS,
    kill,
    metrics,
    peer_process,
    process_to_end,
    reachable,
    running,
    wait_until,
)

from swarmgame.runtime.options import run_id
from swarmgame.swarm.blocking import EventLoopThread
from swarmgame.swarm.identity import Identity
from swarmgame.swarm.messages import make_heartbeat
from swarmgame.swarm.network_options import NetworkOptions
from swarmgame.swarm.transport import Handlers
from swarmgame.swarm.transports.libp2p import Libp2pTransport
from swarmgame_api.load import load_manifest

pytestmark = pytest.mark.timeout(600)

GAME = EXAMPLES / "03-digits" / "game.yaml"
ENDLESS = ("--rounds=1000000", "--set=storage.checkpoints.everyRounds=1", "--no-report")
UNHURRIED = ("--set=game.data.with.questionsPerRound=64", "--set=game.trainer.with.generations=16")
"""Rounds long enough to kill a peer, and to let one join, in the middle of the run."""


def last_round(run: Path, index: int) -> int:
    rows = metrics(run, index)
    return int(rows[-1]["round"]) if rows else -1


def round_at_start(run: Path, directory: Path) -> int:
    """Return the last round that peer 0 of a run had finished when the process of another peer came: when that wrote
    its ports, before it looked for the swarm.
    """
    came = (directory / "http.json").stat().st_mtime
    return max(int(row["round"]) for row in metrics(run, 0) if row["time"] <= came)


def status(directory: Path) -> dict[str, Any]:
    """Return the answer of /status."""
    port = json.loads((directory / "http.json").read_text())["port"]
    with urlopen(f"http://127.0.0.1:{port}/status", timeout=10) as answer:
        return dict(json.load(answer))


@pytest.mark.parametrize("quorum", [["--set=game.progression.quorum=67%"], []], ids=["67 %", "all peers"])
def test_a_peer_of_four_that_is_killed_is_back_where_the_swarm_is_with_its_identity_and_weights(
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
        assert again["round"] >= round_at_start(run, run / "peers" / "3")
        assert again["peer"] == before["peer"]
        # Its weights are those of the checkpoint: one update older than before at the most, one newer by this round.
        assert before["policy_version"] - 1 <= again["policy_version"] - 1 <= before["policy_version"] + 1
        assert len(again["members"]) == 4

        def used() -> bool:
            return any(again["peer"] in row["external"] for row in metrics(run, 0) if row["round"] >= again["round"])

        wait_until(used, "the others learn from it again", runner)
        runner.send_signal(signal.SIGINT)
        assert runner.wait(TIMEOUT_SECONDS) == 143


def test_a_peer_joins_with_an_address_takes_part_where_the_swarm_is_and_leaves(tmp_path: Path) -> None:
    run, joined = tmp_path / "digits", tmp_path / "joined"
    with running("run", GAME, *ENDLESS, *UNHURRIED, "--peers=2", "--runs", tmp_path) as runner:
        wait_until(lambda: min(last_round(run, index) for index in range(2)) >= 2, "both have played", runner)
        shown = reachable(runner)
        assert shown["addresses"][0] in status(run / "peers" / "0")["addresses"]
        _, *command = shlex.split(shown["join"])
        assert set(UNHURRIED) <= set(command)
        with running(*command, *ENDLESS[1:], "--directory", joined, "--port=0") as joiner:
            assert reachable(joiner)["addresses"]
            wait_until(lambda: len(metrics(joined, 0)) >= 2, "the joined peer plays", joiner)
            rows = metrics(joined, 0)
            me = rows[0]["peer"]
            assert rows[0]["round"] >= round_at_start(run, joined / "peers" / "0")
            assert len(rows[1]["members"]) == 3
            wait_until(
                lambda: any(me in row["external"] for row in metrics(run, 0)),
                "the others train on its rollouts",
                runner,
            )
            wait_until(
                lambda: any(row["external"] for row in metrics(joined, 0)),
                "it trains on those of the others",
                joiner,
            )
            joiner.send_signal(signal.SIGINT)
            assert joiner.wait(TIMEOUT_SECONDS) == 143
        other_rows = ("--set=game.data.with.heldOut=0.3", "--directory", tmp_path / "refused")
        refused = process_to_end(*command, *other_rows, expect=77)
        theirs, yours = (status(run / "peers" / "0")["sources"], "your data differs: theirs")
        assert f"{yours} {theirs['data'][:8]}, yours" in refused.stderr
        assert "take their spec.game.data" in refused.stderr
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
        assert runner.wait(TIMEOUT_SECONDS) == 75
    assert metrics(run, 0)[-1]["closed_by"] == "alone"


def test_three_silent_keys_hold_up_no_stage_of_a_run(tmp_path: Path) -> None:
    run = tmp_path / "digits"
    with running("run", GAME, *ENDLESS, "--peers=4", "--runs", tmp_path) as runner:
        name, keys = run_id(load_manifest(GAME)), [Identity.generate() for _ in range(3)]
        addresses = reachable(runner)["addresses"]
        wait_until(lambda: last_round(run, 0) >= 1, "the peers have played", runner)
        with silent_members(name, tmp_path / "stranger.key", keys, addresses):

            def rows() -> list[dict[str, Any]]:
                return [row for row in metrics(run, 0) if len(row["members"]) == 7]

            # A stage that waits for them ends with their heartbeats, and then they are no members any more.
            wait_until(lambda: len(rows()) >= 8, "the peers go on at their pace beside the silent keys", runner)
            assert {row["closed_by"] for row in rows()} == {"quorum"}
            standings = status(run / "peers" / "0")["standings"]
            assert sorted(standings.values()) == ["anchor"] * 3 + ["probation"] * 3


@contextmanager
def silent_members(run: str, key: Path, members: Sequence[Identity], addresses: Sequence[str]) -> Iterator[None]:
    """Put heartbeats into the directory of a swarm, of keys that no process has."""
    thread, identity = EventLoopThread("strangers"), Identity.load_or_create(key)
    transport = Libp2pTransport(run, identity.peer, NetworkOptions(key, "127.0.0.1", initial_peers=tuple(addresses)))
    try:
        thread.run(transport.start(Handlers(call=lambda sender, message: b"", body=lambda name: None)))
        assert thread.run(transport.connect_initial_peers())
        for member in members:
            transport._place = f"{member.peer}/0"
            heartbeat = make_heartbeat(run, member.peer, 0, 0, time.time() + 600.0, member.sign)
            thread.run(transport.advertise(heartbeat.message, heartbeat.expires))
        yield
    finally:
        thread.run(transport.close())
        thread.close()
