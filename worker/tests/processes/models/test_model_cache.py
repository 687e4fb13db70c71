"""The cache of built-in models, with several processes at it."""

from __future__ import annotations

import multiprocessing
from pathlib import Path

import torch
from language_rounds import Letters

from swarmgame.game.components import ComponentContext
from swarmgame.models.loading import load_model
from swarmgame.models.warmstart import ensure_model

SMALL = "builtin://tiny?layers=1&hidden=32"


def _make(cache: Path, barrier: object) -> None:
    torch.set_num_threads(1)
    barrier.wait()  # type: ignore[attr-defined]
    source = ensure_model(
        ComponentContext(model_uri=f"{SMALL}&accuracy=0.9&steps=25", cache=cache, demonstrations=Letters())
    )
    load_model(source, dtype=torch.float32, device="cpu")


def test_four_processes_that_need_the_same_model_at_once_all_get_it_complete(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    barrier = context.Barrier(4)
    processes = [context.Process(target=_make, args=(tmp_path, barrier)) for _ in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
    assert [process.exitcode for process in processes] == [0] * 4
    assert len([path for path in (tmp_path / "models").iterdir() if path.is_dir()]) == 1
