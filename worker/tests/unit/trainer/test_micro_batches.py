"""A round's metrics and its step are those of the round: how it is cut into micro-batches changes nothing."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from another_engine import with_engine
from language_rounds import contribution_of, round_of, scored, state_of, trainer, with_groups

from swarmgame.game.state import FinishReason, Group
from swarmgame.trainer.grpo.step_stats import LOSS_METRICS

MODEL_2 = "builtin://tiny?accuracy=0&layers=1&hidden=32&seed=5"
CASES: dict[str, dict[str, Any]] = {
    "own and remote rollouts": {},
    "two iterations with a reference": {"iterations": 2, "beta": 0.1, "loss": "grpo"},
    "ratios and weights of rollouts": {"loss": "gspo", "importance_mode": "sequence_truncate"},
    "cut rollouts masked": {
        "mask_truncated_completions": True,
        "max_new_tokens": 3,
        "loss": "cispo",
        "epsilon_high": 5.0,
    },
    "tokens of high entropy": {"top_entropy_quantile": 0.5},
    "another engine": {},
}


@pytest.mark.parametrize("case", CASES)
def test_metrics_do_not_depend_on_the_size_of_micro_batches(cache: Path, case: str) -> None:
    found = []
    for tokens in (1, 40, 100_000):
        learner = trainer(cache, tokens_per_micro_batch=tokens, **CASES[case])
        if case == "another engine":
            learner = with_engine(learner, 0.5)
        own = contribution_of(learner, round_of())
        other = contribution_of(trainer(cache, model=MODEL_2, **CASES[case]), round_of(peer="other"))
        # One rollout has a single token, so that there is a micro-batch that is one token wide.
        remote = with_groups(other, _with_a_single_token)
        state = state_of(round_of(), [own, remote])
        metrics = learner.train(state, scored(state, lambda rollout: float(len(set(rollout.token_ids)))))
        found.append({name: metrics[name] for name in (*LOSS_METRICS, "loss", "grad_norm", "tokens_trained")})
    assert found[0]["importance"] != pytest.approx(1.0, abs=1e-3)
    for other_size in found[1:]:
        assert other_size == pytest.approx(found[0], rel=1e-6, abs=1e-6, nan_ok=True)


def _with_a_single_token(group: Group) -> Group:
    first = group.rollouts[0]
    short = replace(
        first,
        token_ids=tuple(first.token_ids)[:1],
        logprobs=tuple(first.logprobs)[:1],
        finish_reason=FinishReason.LENGTH,
    )
    return replace(group, rollouts=(short, *group.rollouts[1:]))
