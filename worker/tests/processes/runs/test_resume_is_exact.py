"""kill -9 of every process, at random moments, loses nothing: the resumed run equals the uninterrupted one bit for
bit.
"""

from __future__ import annotations

from pathlib import Path
from random import Random

import pytest
import torch
from running import EXAMPLES, descendants, kill, metrics, newest_weights, reproducible, run_to_end, running, wait_until

pytestmark = pytest.mark.timeout(600)

PEERS, ROUNDS = 2, 12
GAME = EXAMPLES / "01-quickstart" / "game.yaml"
SETTINGS = (
    f"--peers={PEERS}",
    f"--rounds={ROUNDS}",
    "--set=storage.checkpoints.everyRounds=1",
    "--set=game.data.with.questionsPerRound=4",
    "--set=game.trainer.with.generations=4",
    "--set=game.evaluation.everyRounds=3",
    "--set=game.evaluation.questions=8",
    "--set=game.evaluation.samples=2",
    "--no-report",
)


@pytest.mark.parametrize("overlap", [False, True])
def test_a_run_killed_three_times_equals_an_uninterrupted_one_bit_for_bit(tmp_path: Path, overlap: bool) -> None:
    settings = (*SETTINGS, f"--set=game.trainer.with.overlap={str(overlap).lower()}")
    straight, broken = tmp_path / "straight", tmp_path / "broken"
    run_to_end("run", GAME, *settings, "--runs", tmp_path, "--name", "straight")
    random = Random(20)
    for victim_round in sorted(random.sample(range(1, ROUNDS // 2), 3)):
        with running("run", GAME, *settings, "--runs", tmp_path, "--name", "broken") as runner:
            watched = random.randrange(PEERS)

            def far_enough(watched: int = watched, victim_round: int = victim_round) -> bool:
                rows = metrics(broken, watched)
                return bool(rows) and rows[-1]["round"] >= victim_round

            wait_until(far_enough, f"peer {watched} has finished round {victim_round}", runner)
            for pid in (runner.pid, *descendants(runner.pid)):
                kill(pid)
        # The run was not over, so the next one resumes.
        assert len(metrics(broken, watched)) < ROUNDS
    run_to_end("run", GAME, *settings, "--runs", tmp_path, "--name", "broken")

    lags = [row["metrics"]["policy_lag"] for row in metrics(straight, 0)] if overlap else []
    assert set(lags[1:]) <= {0.0, 1.0}  # 0 behind a round without a step
    assert bool(sum(lags)) == overlap
    for index in range(PEERS):
        expected, got = reproducible(metrics(straight, index)), reproducible(metrics(broken, index))
        assert [row["round"] for row in got] == list(range(ROUNDS))
        assert got == expected, f"peer {index}"
        left, right = newest_weights(straight, index), newest_weights(broken, index)
        assert left.keys() == right.keys()
        assert all(torch.equal(left[name], right[name]) for name in left), f"weights of peer {index}"
