"""Two ranks that shard a policy over two CUDA devices: NCCL, bfloat16, compiled layers and CUDA graphs. Skipped where
there are fewer devices.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from rank_processes import run_ranks


def test_two_devices_that_shard_make_the_update_of_two_that_do_not(tmp_path: Path) -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("there are fewer than two CUDA devices")
    codes, output = run_ranks(
        "sharded_learners.play_on_devices(Path(sys.argv[1]), ranks)",
        2,
        tmp_path,
        imports="import sharded_learners",
        on_gpu=True,
    )
    assert codes == [0, 0], output
