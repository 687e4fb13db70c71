"""The main job, as in the README: install, apply, wait; the reward rises, and the game completes."""

from __future__ import annotations

import json
from pathlib import Path
from statistics import mean

import pytest
from clusters import Namespace
from games import Game, Installation, play

pytestmark = pytest.mark.timeout(900)
QUICKSTART = Path(__file__).resolve().parents[2] / "examples" / "01-quickstart" / "game.yaml"


def test_the_quickstart_is_applied_learns_and_completes(operator: Installation, namespace: Namespace) -> None:
    game = play(namespace, QUICKSTART)
    game.wait("Accepted", reason="Valid", seconds=30)
    game.wait("Ready", reason="PeersReady", seconds=300)
    early = game.wait_for_round(10, seconds=240)
    columns, row = namespace.kubectl("get", "sg", game.name).splitlines()
    assert columns.split() == ["NAME", "READY", "REASON", "PEERS", "DESIRED", "ROUND", "ROUNDS", "REWARD", "AGE"]
    name, ready, reason, peers, desired, round, rounds, *_ = row.split()
    assert (name, ready, reason, peers, desired, rounds) == ("quickstart", "True", "PeersReady", "4", "4", "200")
    assert int(round) >= early

    game.wait_for_round(150, seconds=400)
    rounds = [round for index in range(4) for round in _rounds(game, index)]
    first, last = (
        mean(each["reward"] for each in rounds if part(each["round"]))
        for part in (lambda r: r < 20, lambda r: r >= 130)
    )
    assert last - first > 0.05, f"mean reward {first:.3f} in the first 20 rounds, {last:.3f} in the last 20"

    complete = game.wait("Complete", seconds=300)
    assert complete["reason"] in ("RoundsReached", "AllPeersSucceeded")
    namespace.kubectl("wait", "--for=condition=Complete", "sg/quickstart", "--timeout=1s")
    status = game.status
    assert status["progress"]["round"] == 200
    assert status["progress"]["percentage"] == 100
    assert status["completionTime"] >= status["startTime"]
    assert game.condition("Progressing")["reason"] == "Finished"
    assert not [pod for pod in game.pods() if pod["status"]["phase"] == "Running"]


def _rounds(game: Game, index: int) -> list[dict[str, float]]:
    """Return a peer's records of scored rounds."""
    pod = game.peers()[index]["metadata"]["name"]
    written = game.namespace.kubectl(
        "exec", pod, "-c", "peer", "--", "sh", "-c", "cat /checkpoints/peer/metrics.jsonl"
    ).splitlines()
    return [each for each in map(json.loads, written[:-1]) if each.get("reward") is not None]
