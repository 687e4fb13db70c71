"""Two peers train with TRL's GRPOTrainer on each other's rollouts, stop and go on; a replay without a stop gives equal
weights.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from running import EXAMPLES, metrics, run_to_end

pytestmark = pytest.mark.timeout(600)
OPTIONS = {"loss_type": "cispo", "epsilon_high": 2.0, "learning_rate": 1e-3, "lr_scheduler_type": "cosine"}


def test_a_swarm_of_trl_trainers_resumes_exactly(tmp_path: Path) -> None:
    game = yaml.safe_load((EXAMPLES / "01-quickstart" / "game.yaml").read_text())
    spec = game["spec"]["game"]
    spec["data"]["with"]["questionsPerRound"] = 4
    spec["evaluation"] = {"everyRounds": 2, "questions": 4}
    spec["trainer"] = {
        "use": "trl",
        "with": {"generations": 4, "maxNewTokens": 6, "options": {**OPTIONS, "max_steps": 4, "warmup_steps": 1}},
    }
    game["spec"]["storage"]["checkpoints"]["everyRounds"] = 1
    (tmp_path / "game.yaml").write_text(yaml.safe_dump(game))
    for rounds in (2, 3):  # the second goes on from the checkpoint of the first
        run_to_end("run", tmp_path / "game.yaml", "--peers=2", "--no-report", "--runs", tmp_path, f"--rounds={rounds}")
    run = tmp_path / "quickstart"
    for index in range(2):
        rows = metrics(run, index)
        assert [row["round"] for row in rows] == [0, 1, 2]
        rates = [row["metrics"]["learning_rate"] for row in rows]
        assert rates[0] == 0  # of a warm-up; a round without a signal takes no step of the schedule
        assert 1e-4 < max(rates) <= 1e-3
        assert sum(row["metrics"]["groups_external"] for row in rows) > 0
    assert "3 rounds (0 to 2) from the initial model: equal weights" in run_to_end("replay", run).stdout
