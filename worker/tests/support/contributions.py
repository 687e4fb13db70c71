"""Contributions to exchange."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

from swarmgame.game.state import Contribution, FinishReason, Group, Message, Prompt, QuestionRef, Rollout

MakeContribution = Callable[..., Contribution]


def make_contribution(
    peer: str,
    round: int = 0,
    stage: int = 0,
    *,
    groups: int = 3,
    rollouts: int = 2,
    tokens: int = 5,
    tokenizer: str = "bytes",
    policy_version: int = 7,
) -> Contribution:
    """Return random groups, the same for the same arguments; log-probabilities are exact in f16."""
    random = Random(f"{peer}/{round}/{stage}")
    references = [QuestionRef("sums", "c0ffee", random.getrandbits(60), index) for index in range(groups)]

    def rollout() -> Rollout:
        ids = tuple(random.randrange(50_000) for _ in range(tokens))
        logprobs = tuple(-random.randrange(64) / 8 for _ in range(tokens))
        return Rollout(f"answer {random.random()} é", ids, logprobs, random.choice(list(FinishReason)))

    made = tuple(
        Group(
            Prompt(
                reference.id,
                (Message("system", "add"), Message("user", f"what is {reference.index} + 1? ✓")),
                (1, 2, 3 + reference.index),
            ),
            tuple(rollout() for _ in range(rollouts)),
        )
        for reference in references
    )
    return Contribution(
        peer, round, stage, made, {reference.id: reference for reference in references}, tokenizer, policy_version
    )
