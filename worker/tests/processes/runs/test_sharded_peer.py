"""A peer whose ranks shard its policy plays on after one of them is killed: it loses no round, and its checkpoints are
complete.
"""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
from running import EXAMPLES, TIMEOUT_SECONDS, descendants, environment_of, kill, metrics, running, wait_until
from toys import ToyTrainer

from swarmgame.runtime.checkpoint import CheckpointStore
from swarmgame.runtime.weights import weights_hash

pytestmark = pytest.mark.timeout(600)

GAME = EXAMPLES / "01-quickstart" / "game.yaml"
SETTINGS = (
    "--peers=1",
    "--rounds=1000000",
    "--processes-per-peer=2",
    "--set=game.trainer.with.sharding=full",
    "--set=storage.checkpoints.everyRounds=2",
    "--set=game.data.with.questionsPerRound=4",
    "--set=game.evaluation=null",
    "--no-report",
)


class Holding(ToyTrainer):
    """A trainer with the weights of a run's newest checkpoint."""

    def __init__(self, run: Path) -> None:
        super().__init__()
        found = CheckpointStore(run / "peers" / "0" / "checkpoints").load_latest()
        assert found is not None
        self._held: dict[str, object] = found.state["trainer"]["optimization"]["weights"]

    def weights(self) -> dict[str, object]:
        return self._held


def test_a_rank_of_a_sharded_peer_that_is_killed_loses_no_round(tmp_path: Path) -> None:
    run = tmp_path / "sharded"
    with running("run", GAME, *SETTINGS, "--runs", tmp_path, "--name", "sharded") as runner:
        wait_until(lambda: len(metrics(run, 0)) >= 3, "three rounds are played", runner)
        kill(_second_rank(runner.pid))
        played = len(metrics(run, 0))
        wait_until(lambda: len(metrics(run, 0)) >= played + 3, "three more are played", runner)
        runner.send_signal(signal.SIGINT)
        assert runner.wait(TIMEOUT_SECONDS) == 143
    rows = metrics(run, 0)
    assert [row["round"] for row in rows] == list(range(len(rows)))
    # A round takes no step where the answers to every question score alike.
    steps = [row["metrics"]["steps"] for row in rows]
    assert set(steps) <= {0, 1}
    assert sum(steps[:3]) >= 1
    assert sum(steps[3:]) >= 1
    assert rows[-1]["policy_version"] == sum(steps)
    assert len({row["weights"] for row in rows}) == sum(steps) + (steps[0] == 0)
    assert rows[-1]["weights"] == weights_hash(Holding(run))


def _second_rank(runner: int) -> int:
    """Return the process of the rank that is not the first."""
    for pid in descendants(runner):
        if b"\0RANK=1\0" in environment_of(pid):
            return pid
    raise AssertionError("the peer has no second rank")
