"""Two ranks that shard the policy make the update of two that do not, and hold half of it each; checkpoints are alike,
and a rank that dies ends the other.
"""

from __future__ import annotations

from pathlib import Path

from rank_processes import run_ranks


def test_ranks_that_shard_train_resume_and_end_as_others_do(tmp_path: Path) -> None:
    codes, output = run_ranks(
        "sharded_learners.play(Path(sys.argv[1]), ranks)", 2, tmp_path, imports="import sharded_learners"
    )
    assert codes == [9, 75], output
