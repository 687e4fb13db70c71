"""Ranks on CUDA devices: gradients over NCCL, bytes over gloo, and as many processes as there are devices."""

from __future__ import annotations

import pytest
import torch

from swarmgame.errors import BadUsage
from swarmgame.launch.local_peers import free_ports
from swarmgame.runtime.ranks import DistributedRanks, ranks_from_environment


def test_gradients_are_added_up_on_the_device_and_bytes_travel_beside_them(
    monkeypatch: pytest.MonkeyPatch, device: str
) -> None:
    [port] = free_ports(1)
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", str(port))
    parameter = torch.nn.Parameter(torch.zeros(3, device=device))
    parameter.grad = torch.tensor([1.0, 2.0, 3.0], device=device)
    with DistributedRanks(0, 1, on_gpu=True, timeout_seconds=30) as ranks:
        ranks.sum_gradients([parameter])
        assert ranks.gather(b"bytes") == [b"bytes"]
        assert ranks.broadcast(b"more") == b"more"
    assert parameter.grad.tolist() == [1.0, 2.0, 3.0]
    assert parameter.grad.device.type == "cuda"


def test_a_process_without_a_device_of_its_own_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    count = torch.cuda.device_count()
    for name, value in (("WORLD_SIZE", count + 1), ("RANK", count), ("LOCAL_RANK", count)):
        monkeypatch.setenv(name, str(value))
    with pytest.raises(BadUsage, match=f"process {count} of this machine has no GPU: there are {count}"):
        ranks_from_environment()
