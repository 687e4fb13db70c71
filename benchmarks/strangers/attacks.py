"""The attacks: what four untrusted peers with keys of their own send in a stage.

Each knows the question, its answer, the scorer and the policy of an honest peer, and passes every check of form: own
questions, the right prompt, ids that give the text, as many rollouts as the game has. Rewards differ in every group.
But for `claims` the log-probabilities are those of the honest policy, which no comparison can tell from the truth.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from strangers.game import Products
from swarmgame.game.state import Contribution, FinishReason, GameState, Group, PeerId, Prompt, Question, Rollout, Round
from swarmgame.seeds import derive_seed
from swarmgame.trainer.claims import IMPROBABLE_NATS
from swarmgame.trainer.grpo.trainer import GRPOTrainer

PAYLOAD = "zz"
STRANGERS = ("00-a", "00-b", "00-c", "00-d")
"""Names that are sorted before those of honest peers: whatever the order of names decides is in their favour."""


@dataclass(frozen=True)
class Target:
    """What the untrusted peers know.

    Args:
        data: the game's questions.
        trainer: of an honest peer, with its present policy.
    """

    data: Products
    trainer: GRPOTrainer


Texts = Callable[[Question, random.Random, int], tuple[list[str], list[str]]]
"""Returns the texts that score more, and those that score less, for a question and a length in tokens."""


def contrast(question: Question, rng: random.Random, length: int) -> tuple[list[str], list[str]]:
    """The answer with junk behind it, against junk alone."""
    good = [question.answer + _junk(rng, length - len(question.answer)) for _ in range(4)]
    return good, [_junk(rng, 3) for _ in range(4)]


def padding(question: Question, rng: random.Random, length: int) -> tuple[list[str], list[str]]:
    """The answer in a text that is as long as allowed, against short answers that are nearly right."""
    good = [question.answer + question.answer[-1] * (length - len(question.answer))] * 4
    return good, [str(int(question.answer) + off) for off in (-10, 10, -1, 1)]


def payload(question: Question, rng: random.Random, length: int) -> tuple[list[str], list[str]]:
    """A word of the attacker's before the answer, against a wrong answer."""
    return [PAYLOAD + question.answer] * 4, ["0"] * 4


def none(target: Target, honest: Mapping[PeerId, Contribution]) -> list[Contribution]:
    """No untrusted peer."""
    return []


def copies(target: Target, honest: Mapping[PeerId, Contribution]) -> list[Contribution]:
    """The honest contributions, signed again."""
    return [replace(each, peer=name) for name, (_, each) in zip(STRANGERS, sorted(honest.items()), strict=False)]


def claims(target: Target, honest: Mapping[PeerId, Contribution]) -> list[Contribution]:
    """Contrast, with claims as low as they may be before a rollout counts as impossible: the largest weight."""
    return _made(target, honest, contrast, lie=0.95 * IMPROBABLE_NATS)


def _with(texts: Texts) -> Callable[[Target, Mapping[PeerId, Contribution]], list[Contribution]]:
    return lambda target, honest: _made(target, honest, texts)


# `hole`: the payload, where the scorer gives it full reward.
ATTACKS: Mapping[str, Callable[[Target, Mapping[PeerId, Contribution]], list[Contribution]]] = {
    "none": none,
    "claims": claims,
    "copies": copies,
    "contrast": _with(contrast),
    "length": _with(padding),
    "payload": _with(payload),
    "hole": _with(payload),
}


def _made(
    target: Target, honest: Mapping[PeerId, Contribution], texts: Texts, *, lie: float = 0.0
) -> list[Contribution]:
    """Return the contributions of all strangers.

    Args:
        lie: nats by which the claims of a rollout are below the truth.
    """
    number = next(iter(honest.values())).round
    return [_contribution(target, name, number, texts, lie) for name in STRANGERS]


def _contribution(target: Target, name: PeerId, number: int, texts: Texts, lie: float) -> Contribution:
    round = Round(number, derive_seed(name, number), derive_seed("stranger", name, number), 1, name, (name,))
    rng = random.Random(round.peer_seed)
    state = GameState.begin(round, target.data.round_data(round))
    prompts = target.data.stage_inputs(state, 0)
    length = target.trainer.config.max_new_tokens
    made: list[tuple[Prompt, list[tuple[str, tuple[int, ...], FinishReason]]]] = []
    for prompt in prompts:
        good, bad = texts(state.questions[prompt.question_id], rng, length)
        made.append((prompt, [_tokens(target.trainer, text, length) for text in (*good, *bad)]))
    logprobs = iter(_logprobs(target.trainer, [(prompt, ids) for prompt, rows in made for _, ids, _ in rows]))
    groups = [
        Group(
            prompt,
            tuple(
                Rollout(text, ids, tuple(min(0.0, each - lie / len(ids)) for each in next(logprobs)), reason)
                for text, ids, reason in rows
            ),
        )
        for prompt, rows in made
    ]
    references = {prompt.question_id: state.questions[prompt.question_id].reference for prompt in prompts}
    return Contribution(name, number, 0, tuple(groups), references, target.trainer.tokenizer, number)


def _tokens(trainer: GRPOTrainer, text: str, length: int) -> tuple[str, tuple[int, ...], FinishReason]:
    """Return a text with its ids and an EOS, unless it fills the budget."""
    tokenizer = trainer.policy.tokenizer
    ids = tuple(tokenizer(text, add_special_tokens=False)["input_ids"])[:length]
    text = trainer.policy.decode(ids) or ""
    if len(ids) == length:
        return text, ids, FinishReason.LENGTH
    return text, (*ids, trainer.policy.eos_token_ids[0]), FinishReason.STOP


def _logprobs(trainer: GRPOTrainer, rows: Sequence[tuple[Prompt, tuple[int, ...]]]) -> list[list[float]]:
    """Return the log-probabilities that the policy gives to the ids."""
    with torch.no_grad():
        prompts = [trainer.policy.encode(prompt) for prompt, _ in rows]
        found, _, _ = trainer.policy.score(prompts, [ids for _, ids in rows])
    return [row[: len(ids)].tolist() for row, (_, ids) in zip(found, rows, strict=True)]


def _junk(rng: random.Random, length: int) -> str:
    return "".join(rng.choice("0123456789abcdefghij") for _ in range(max(0, length)))
