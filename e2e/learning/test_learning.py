"""The main job, as in the README: install, apply, wait; the held-out reward rises, and the game completes."""

from __future__ import annotations

import json
from pathlib import Path
from statistics import mean
from typing import Any

import pytest
from clusters import Namespace
from games import Game, Installation, play
from polling import until

pytestmark = pytest.mark.timeout(900)
QUICKSTART = Path(__file__).resolve().parents[2] / "examples" / "01-quickstart" / "game.yaml"
EVALUATED, ROUNDS = 200, 250
"""The evaluation that is read, and all rounds: the pods are gone once the first peer has finished."""


def test_the_quickstart_is_applied_learns_and_completes(operator: Installation, namespace: Namespace) -> None:
    game = play(namespace, QUICKSTART, game={"maxRounds": ROUNDS})
    game.wait("Accepted", reason="Valid", seconds=30)
    game.wait("Ready", reason="PeersReady", seconds=300)
    early = game.wait_for_round(10, seconds=240)
    until(lambda: game.status["peers"]["ready"] == 4, 150, seen=namespace.describe)  # Ready needs one peer
    columns, row = namespace.kubectl("get", "sg", game.name).splitlines()
    assert columns.split() == ["NAME", "READY", "REASON", "PEERS", "DESIRED", "ROUND", "ROUNDS", "REWARD", "AGE"]
    name, ready, reason, peers, desired, round, rounds, *_ = row.split()
    assert (name, ready, reason, peers, desired, rounds) == ("quickstart", "True", "PeersReady", "4", "4", str(ROUNDS))
    assert int(round) >= early

    records: list[dict[str, Any]] = []
    for index in range(4):
        game.wait_for_round_of_peer(index, EVALUATED + 2, seconds=400)
        records += _rounds(game, index)
    before = [reward for each in records if (reward := _held_out(each, "first_evaluation")) is not None]
    after = [(each["round"] + 1, reward) for each in records if (reward := _held_out(each, "evaluation")) is not None]
    # The mean of four peers at the end differs by 0.01 to 0.02 from run to run, and is 0.1 above the one before.
    last = mean(reward for round, reward in after if round == EVALUATED)
    assert last - mean(before) > 0.03, f"held-out rewards {before} before training, {after} by round"

    complete = game.wait("Complete", seconds=300)
    assert complete["reason"] in ("RoundsReached", "AllPeersSucceeded")
    namespace.kubectl("wait", "--for=condition=Complete", "sg/quickstart", "--timeout=1s")
    status = game.status
    assert status["progress"]["round"] == ROUNDS
    assert status["progress"]["percentage"] == 100
    assert status["completionTime"] >= status["startTime"]
    assert game.condition("Progressing")["reason"] == "Finished"
    assert not [pod for pod in game.pods() if pod["status"]["phase"] == "Running"]


def _held_out(round: dict[str, Any], name: str) -> float | None:
    """Return the mean held-out reward of an evaluation; None where a round has none of this name."""
    return round[name]["average"]["all"] if round.get(name) else None


def _rounds(game: Game, index: int) -> list[dict[str, Any]]:
    """Return a peer's records of scored rounds."""
    pod = game.peers()[index]["metadata"]["name"]
    written = game.namespace.kubectl(
        "exec", pod, "-c", "peer", "--", "sh", "-c", "cat /checkpoints/peer/metrics.jsonl"
    ).splitlines()
    return [each for each in map(json.loads, written[:-1]) if each.get("reward") is not None]
