"""A loss of the author's own: tried before a game starts, and trained with like a built-in one."""

from __future__ import annotations

import textwrap
from pathlib import Path

import pytest
import torch
from language_rounds import contribution_of, furthest, round_of, scored, small_letters, state_of, trainer, weights
from pydantic import ValidationError

from swarmgame.errors import BadGame, ExitCode, InvalidManifest, exit_code_of
from swarmgame.game.state import GroupKey
from swarmgame.trainer.grpo.config import GRPOConfig
from swarmgame.trainer.grpo.loss import LossInputs
from swarmgame.trainer.grpo.own_loss import weighted
from swarmgame.trainer.grpo.remote_bounds import RemoteBounds
from swarmgame.trainer.grpo.samples import TrainingSample
from swarmgame.trainer.grpo.trainer import GRPOTrainer

DAPO = """
    import torch

    def loss(inputs, options, normalizer):
        ratio = (inputs.logprobs_BT - inputs.old_logprobs_BT).exp()
        clipped = ratio.clamp(1 - options.epsilon, 1 + options.epsilon)
        advantages = inputs.advantages_B.unsqueeze(1)
        objective = -torch.min(ratio * advantages, clipped * advantages)
        return (objective * inputs.mask_BT).sum() / max(1, normalizer.tokens)
"""
REINFORCE = """
    def loss(inputs, options, normalizer):
        objective = -inputs.advantages_B.unsqueeze(1) * inputs.logprobs_BT
        return {returned}
"""


def module(folder: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> str:
    """Write a module with a loss, and return the loss's name in a manifest."""
    name = f"loss_{abs(hash(text))}"
    (folder / f"{name}.py").write_text(textwrap.dedent(text))
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.chdir(folder)
    return f"{name}:loss"


def checked(name: str, **options: object) -> list[str]:
    return list(GRPOTrainer.doubts(GRPOConfig(loss_type=name, **options), 1))


def test_a_loss_of_ones_own_makes_the_update_of_the_built_in_one(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = module(tmp_path, monkeypatch, DAPO)
    assert checked(name) == []
    options = {"iterations": 2, "tokens_per_micro_batch": 60}
    ours, theirs = trainer(cache, loss_type=name, **options), trainer(cache, loss_type="dapo", **options)
    before = weights(ours)
    for number in range(2):
        state = state_of(round_of(number), [contribution_of(ours, round_of(number))])
        found, expected = (each.train(state, scored(state)) for each in (ours, theirs))
        assert furthest(weights(ours), weights(theirs)) < 1e-5
        same = ("loss", "steps", "groups_trained")
        assert [found[key] for key in same] == pytest.approx([expected[key] for key in same], abs=1e-5)
        # Means over tokens: those of groups without a signal are among them here.
        assert [found[key] for key in ("entropy", "ratio")] == pytest.approx(
            [expected[key] for key in ("entropy", "ratio")], abs=0.1
        )
    assert furthest(before, weights(ours)) > 1e-3


def test_rollouts_that_the_budget_cut_are_masked_for_it_as_for_a_built_in_one(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {"mask_truncated_completions": True, "max_new_tokens": 6}
    name = module(tmp_path, monkeypatch, DAPO)
    assert checked(name, mask_truncated_completions=True) == []
    ours, theirs = trainer(cache, loss_type=name, **options), trainer(cache, loss_type="dapo", **options)
    before = weights(ours)
    own = contribution_of(ours, round_of())
    cut = [rollout.finish_reason == "length" for group in own.groups for rollout in group.rollouts]
    assert 0 < sum(cut) < len(cut)
    for each in (ours, theirs):
        each.train(state_of(round_of(), [own]), scored(state_of(round_of(), [own])))
    assert furthest(weights(ours), weights(theirs)) < 1e-5
    assert furthest(before, weights(ours)) > 1e-3


def test_rollouts_of_other_peers_are_weighted_and_bounded(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    learner = trainer(cache, loss_type=module(tmp_path, monkeypatch, DAPO), max_influence=0.3)
    other = trainer(cache, model="builtin://tiny?accuracy=0&layers=1&hidden=32&seed=5")
    state = state_of(round_of(), [contribution_of(learner, round_of()), contribution_of(other, round_of(peer="other"))])
    metrics = learner.train(state, scored(state))
    assert metrics["groups_external"] == 4
    assert 0 < metrics["importance"] <= 1
    assert 0 < metrics["remote_influence"] <= 0.3 + 1e-6


def test_the_mean_weight_of_a_rollout_is_in_its_advantage() -> None:
    inputs = LossInputs(
        logprobs_BT=torch.zeros(2, 3),
        old_logprobs_BT=None,
        advantages_B=torch.tensor([2.0, 1.0]),
        mask_BT=torch.tensor([[True, True, False], [True, True, True]]),
        remote_importance_weights_BT=torch.tensor([[0.5, 0.1, 9.0], [1.0, 1.0, 1.0]]),
    )
    found = weighted(inputs)
    assert found.advantages_B.tolist() == pytest.approx([0.6, 1.0])
    assert found.remote_importance_weights_BT is None


def test_a_round_without_a_gradient_takes_no_step(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    learner = trainer(cache, loss_type=module(tmp_path, monkeypatch, DAPO))
    own = contribution_of(learner, round_of())
    learner.train(state_of(round_of(), [own]), scored(state_of(round_of(), [own]), small_letters))
    before, version = weights(learner), learner.policy_version
    state = state_of(round_of(1), [contribution_of(learner, round_of(1))])
    assert learner.train(state, scored(state, lambda _: 1.0))["steps"] == 0
    assert (furthest(before, weights(learner)), learner.policy_version) == (0, version)


@pytest.mark.parametrize(
    ("returned", "expected"),
    [
        ("objective.sum(dim=1)", "it returned Tensor of shape (4,), no scalar tensor"),
        ("float(objective.sum())", "no scalar tensor"),
        ("None", "it returned None, no scalar tensor"),
        ("objective.sum().detach()", "it returned a tensor without a gradient"),
        ("(objective * inputs.mask_BT).sum() / 0", "which is not finite"),
        ("(objective * inputs.mask_BT).abs().sqrt().sum()", "its gradient is not finite"),
        ("objective.sum()", "its gradient is not zero on padding: multiply by inputs.mask_BT"),
        ("(inputs.logprobs_BT * 0).sum()", "its gradient is zero for rollouts with an advantage"),
    ],
)
def test_a_loss_that_cannot_be_used_is_one_sentence_with_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, returned: str, expected: str
) -> None:
    name = module(tmp_path, monkeypatch, REINFORCE.format(returned=returned))
    with pytest.raises(BadGame) as caught:
        checked(name)
    text = str(caught.value)
    assert text.startswith(f"spec.game.trainer.with.loss is {name}, at {name.partition(':')[0]}.py:2; ")
    assert expected in text
    assert "\n" not in text
    assert exit_code_of(caught.value) == ExitCode.BAD_CONFIG


def test_a_loss_that_raises_shows_the_authors_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = module(tmp_path, monkeypatch, REINFORCE.format(returned="objective.sum() + inputs.nothing"))
    with pytest.raises(BadGame, match=rf"AttributeError: .*nothing.* at {name.partition(':')[0]}\.py:4"):
        checked(name)


def test_a_loss_that_does_not_exist_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = module(tmp_path, monkeypatch, "loss = 3")
    for given, expected in (
        (name, r"with\.loss is \"loss_.*:loss\"; expected a function; it is 3"),
        (f"{name}es", "a function that can be imported: .*AttributeError"),
        ("no_such_module:loss", "a function that can be imported: .*ModuleNotFoundError"),
    ):
        with pytest.raises(InvalidManifest, match=expected):
            checked(given)
    with pytest.raises(ValidationError):
        GRPOConfig(loss_type="dapoo")


@pytest.mark.parametrize(
    ("returned", "expected"),
    [
        ("(objective * inputs.advantages_B.unsqueeze(1) * inputs.mask_BT).sum()", "not proportional to the advantage"),
        ("((objective + inputs.logprobs_BT) * inputs.mask_BT).sum()", "multiply terms without the advantage by"),
    ],
)
def test_a_loss_that_would_not_bound_other_peers_is_warned_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, returned: str, expected: str
) -> None:
    (warning,) = checked(module(tmp_path, monkeypatch, REINFORCE.format(returned=returned)))
    assert expected in warning
    assert "spec.game.sharing.maxInfluence does not bound" in warning


@pytest.mark.parametrize("tokens", [1, 400])
def test_other_peers_have_their_share_whether_the_loss_is_a_mean_over_tokens_or_over_rollouts(tokens: int) -> None:
    """A stranger with many short answers has few tokens, and one with a few long ones has few rollouts."""
    own = [TrainingSample((1,), (2,) * 20, (-1.0) ** at, False, sampler_logprobs=(-1.0,) * 20) for at in range(8)]
    theirs = [
        TrainingSample((1,), (2,) * tokens, 1.0, False, remote=True, group=GroupKey(0, 0, "other", f"q{at}"))
        for at in range(80 // tokens + 2)
    ]
    RemoteBounds(0.3, 1.0).limit([*own, *theirs], GRPOConfig(loss_type="my_loss:loss"))
    others = sum(sample.advantage for sample in theirs)
    assert 0 < others <= 0.3 * (8 + others) * (1 + 1e-9)
    assert others * tokens <= 0.3 * (8 * 20 + others * tokens) * (1 + 1e-9)
    assert [sample.influence for sample in own] == [1.0] * 8
