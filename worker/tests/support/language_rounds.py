"""Rounds for tests of the GRPO trainer: a very small builtin model, a few questions, rewards that are functions of the
text.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from swarmgame.game.components import ComponentContext
from swarmgame.game.demonstrations import Demonstration, Demonstrations
from swarmgame.game.state import (
    Contribution,
    FinishReason,
    GameState,
    Group,
    Prompt,
    Question,
    QuestionRef,
    Rewards,
    Rollout,
    Round,
)
from swarmgame.seeds import derive_seed
from swarmgame.trainer.grpo.config import GRPOConfig
from swarmgame.trainer.grpo.trainer import GRPOTrainer
from swarmgame.trainer.trl.config import TrlConfig
from swarmgame.trainer.trl.trainer import TrlTrainer

MODEL = "builtin://tiny?accuracy=0&layers=1&hidden=32"
Score = Callable[[Rollout], float]


def small_letters(rollout: Rollout) -> float:
    """A reward that any policy can raise: the share of small letters in the text."""
    return sum(character.islower() for character in rollout.text) / 8


def questions(count: int = 4) -> list[Question]:
    return [Question(QuestionRef("words", "v1", 7, index), f"question {index}" + "?" * index) for index in range(count)]


def round_of(number: int = 0, *, peer: str = "me", stages: int = 1) -> Round:
    return Round(
        number=number,
        seed=derive_seed("round", number),
        peer_seed=derive_seed("peer", peer, number),
        stages=stages,
        peer=peer,
        members=(peer,),
    )


def trainer(
    cache: Path,
    *,
    peer: str = "me",
    ranks: Any = None,
    model: str = MODEL,
    device: str = "cpu",
    max_influence: float = 1.0,
    **options: Any,
) -> GRPOTrainer:
    """A trainer of the tiny model; without a bound on the influence of other peers, unless one is given."""
    config = GRPOConfig(**({"generations": 4, "max_new_tokens": 8, "learning_rate": 2e-3} | options))
    context = ComponentContext(model_uri=model, cache=cache, peer=peer, device=device, max_influence=max_influence)
    return GRPOTrainer(config, context if ranks is None else replace(context, ranks=ranks))


def contribution_of(trainer: GRPOTrainer, round: Round, *, peer: str | None = None, stage: int = 0) -> Contribution:
    """Return the contribution of a trainer in a stage, as the loop makes it."""
    own = questions()
    prompts = [Prompt.from_question(question, question.text + f" stage {stage}") for question in own]
    groups = tuple(trainer.generate(prompts, replace(round, stage=stage)))
    references = {question.id: question.reference for question in own}
    return Contribution(
        peer or round.peer, round.number, stage, groups, references, trainer.tokenizer, trainer.sampling_version
    )


def state_of(round: Round, contributions: Sequence[Contribution]) -> GameState:
    state = GameState.begin(round, questions())
    for contribution in contributions:
        state = state.with_contribution(contribution)
    return state.with_external(key for key, _ in state.remote_groups())


def scored(state: GameState, score: Score = small_letters) -> Rewards:
    return {key: [score(rollout) for rollout in group.rollouts] for key, group in state.groups()}


def play(trainer: GRPOTrainer, number: int, score: Score = small_letters) -> Mapping[str, float]:
    """Run a round of one stage."""
    state = state_of(round_of(number), [contribution_of(trainer, round_of(number))])
    return trainer.train(state, scored(state, score))


def weights(learner: GRPOTrainer) -> dict[str, Tensor]:
    """Return copies of the weights by name."""
    return {name: parameter.detach().clone() for name, parameter in learner.policy.model.named_parameters()}


def furthest(left: dict[str, Tensor], right: dict[str, Tensor]) -> float:
    """Return the largest difference between two sets of tensors."""
    assert left.keys() == right.keys()
    return max(float((left[name] - right[name]).abs().max()) for name in left)


def rollout(text: str, ids: Sequence[int], logprob: float = -1.0, reason: FinishReason = FinishReason.STOP) -> Rollout:
    return Rollout(text, tuple(ids), (logprob,) * len(ids), reason)


def with_groups(contribution: Contribution, change: Callable[[Group], Group], **fields: Any) -> Contribution:
    """Return the contribution as one of another peer, with each group changed."""
    return replace(contribution, peer="other", groups=tuple(change(group) for group in contribution.groups), **fields)


class Letters(Demonstrations):
    """Repeat the given letter: a policy learns it within seconds."""

    def demonstrate(self, seed: int, count: int) -> Sequence[Demonstration]:
        letters = [chr(ord("a") + derive_seed(seed, index) % 6) for index in range(count)]
        reference = QuestionRef("letters", "v1", 0, 0)
        return [
            Demonstration(Prompt.from_question(Question(reference, f"say {letter}:")), letter * 2) for letter in letters
        ]

    @property
    def fingerprint(self) -> str:
        return "letters-1"


def trl_trainer(
    cache: Path,
    options: Mapping[str, Any],
    *,
    peer: str = "me",
    device: str = "cpu",
    max_influence: float = 1.0,
    **fields: Any,
) -> TrlTrainer:
    """A trainer of the tiny model with TRL's loss; `options` are TRL's, `fields` those beside them."""
    config = TrlConfig(**({"generations": 4, "max_new_tokens": 8} | fields), options=dict(options))
    context = ComponentContext(model_uri=MODEL, cache=cache, peer=peer, device=device, max_influence=max_influence)
    return TrlTrainer(config, context)
