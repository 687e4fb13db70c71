"""Tests that need a CUDA device: `make test-gpu`. Elsewhere each test is skipped."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("models")


@pytest.fixture(autouse=True)
def device() -> Iterator[str]:
    if not torch.cuda.is_available():
        pytest.skip("there is no CUDA device")
    yield "cuda:0"
    torch.cuda.set_per_process_memory_fraction(1.0)
    torch.cuda.empty_cache()
