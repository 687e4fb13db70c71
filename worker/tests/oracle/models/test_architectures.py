"""A dozen of the architectures of `benchmarks/architectures.py`, one of each kind; the script runs all."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch

BENCHMARKS = Path(__file__).parents[4] / "benchmarks"
EXPECTED = {
    "llama": ("fast", "fused", True),
    "qwen3": ("fast", "fused", True),
    "mistral:full": ("fast", "fused", True),
    "seed_oss": ("fast", "fused", True),  # dropout as a function
    "granite": ("fast", "fused", True),  # multipliers
    "olmo2": ("fast", "fused", True),  # norms behind attention and feed-forward
    "phi3": ("fast", "fused", True),  # joined projections
    "smollm3": ("fast", "fused", True),  # layers without rotary embedding
    "mistral": ("right", "cached", False),  # a window
    "gemma3_text": ("right", "cached", False),  # windows in some layers, softcaps
    "bloom": ("right", "cached", True),  # ALiBi, as a mask of two dimensions
    "mpt": ("right", "cached", False),  # ALiBi by columns
    "opt": ("right", "cached", True),  # dropout and layer drop
    "phimoe:jitter": ("right", "cached", True),  # experts, noise of the router
    "mamba": ("right", "cached", False),  # recurrent
    "lfm2": ("right", "cached", False),  # convolutions and attention
    "falcon_h1": ("right", "cached", False),  # state and attention in one layer
    "phi3:longrope": ("right", "cached", True),
    "minimax": ("right", "recomputed", False),  # a cache of its own class
    "bert": ("refused", None, None),  # reads ahead
}


@pytest.fixture(scope="module")
def architectures() -> Iterator[ModuleType]:
    """The script, imported as it is run: from its own folder."""
    sys.path.insert(0, str(BENCHMARKS))
    try:
        import architectures

        yield architectures
    finally:
        sys.path.remove(str(BENCHMARKS))
        for name in ("architectures", "harness"):
            sys.modules.pop(name, None)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", EXPECTED)
def test_an_architecture_is_sampled_and_trained_as_rows_alone_are_or_refused(
    architectures: ModuleType, name: str
) -> None:
    torch.set_num_threads(1)
    found = architectures.examine(name)
    verdict, decoder, shares = EXPECTED[name]
    assert architectures.verdict(found) == verdict, found
    assert (found.get("decoder"), found.get("shares_prompts")) == (decoder, shares), found
    if verdict == "refused":
        assert found["class"] in found["refused"]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["mistral:full", "seed_oss", "granite", "phi3", "smollm3"])
def test_packed_rows_are_trained_as_rows_alone_are(architectures: ModuleType, name: str) -> None:
    torch.set_num_threads(1)
    found = architectures.examine(name, layout="packed")
    assert (architectures.verdict(found), found["packed"]) == ("fast", True), found


def test_the_page_shows_the_last_results(architectures: ModuleType) -> None:
    last = architectures.result("architectures")
    assert architectures.PAGE.read_text(encoding="utf-8") == architectures.page(last["architectures"])
    assert set(last["architectures"]) == set(architectures.entries())
    assert all(claim["met"] for claim in last["claims"])
