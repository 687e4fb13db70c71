"""A packed update is the padded one: same gradients and metrics, with a reference model, adapters, remote rollouts and
many micro-batches.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from language_rounds import contribution_of, round_of, scored, state_of, trainer

from swarmgame.errors import InvalidManifest
from swarmgame.trainer.grpo import policy as policy_module

CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "reference": {"beta": 0.1},
    "adapters": {"lora": {"rank": 2}, "beta": 0.1},
    "checkpointed adapters": {"lora": {"rank": 2}, "gradient_checkpointing": True},
    "checkpointed": {"gradient_checkpointing": True},
    "many micro-batches": {"tokens_per_micro_batch": 60},
    "two iterations": {"iterations": 2},
    "tokens of high entropy": {"top_entropy_quantile": 0.5},
}


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("models")


@pytest.mark.parametrize("options", CASES.values(), ids=CASES)
def test_the_packed_update_is_the_padded_one(cache: Path, options: dict[str, Any]) -> None:
    found = []
    # The adapters' second matrices begin at zero: the first ones learn from the second step on.
    for layout in ("padded", "packed"):
        learner, other = trainer(cache, layout=layout, **options), trainer(cache, peer="other")
        state = state_of(
            round_of(), [contribution_of(trainer(cache), round_of()), contribution_of(other, round_of(), peer="other")]
        )
        metrics = [learner.train(state, scored(state)) for _ in range(2)]
        moments = learner.state_dict()["optimization"]["moments"]
        found.append((metrics, {name: values["exp_avg"] for name, values in moments.items()}))
    (padded, expected), (packed, gradients) = found
    assert packed[0]["groups_external"] > 0
    for ours, theirs in zip(packed, padded, strict=True):
        assert ours == pytest.approx(theirs, rel=2e-3, abs=2e-5, nan_ok=True)
    assert gradients.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(gradients[name], gradient, atol=2e-5, rtol=1e-3)


def test_auto_is_padded_on_a_cpu_and_nothing_is_compiled(cache: Path) -> None:
    policy = trainer(cache).policy
    assert not policy.packed
    assert policy._packed is None


def test_a_model_that_cannot_be_packed_is_refused_with_the_packed_layout(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(policy_module, "supports_packing", lambda _: False)
    with pytest.raises(InvalidManifest, match='layout is "packed"; expected padded or auto'):
        trainer(cache, layout="packed")
