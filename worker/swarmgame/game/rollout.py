"""A rollout: what a policy sampled for one prompt, and with an environment what both wrote by turns.

Plain immutable records. Ids of all segments stand in one sequence, as the policy read them; log-probabilities are those
of the policy's ids alone, in the same order. A rollout of one turn has no segments, so that games without an
environment store and send what they did before there were any.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from enum import StrEnum


class FinishReason(StrEnum):
    """Why a rollout ended.

    STOP: the policy ended its turn, by EOS or a stop string. LENGTH: the budget of tokens was used up. Only of rollouts
    with an environment: TURNS: the budget of turns was used up; DONE: the environment ended the episode; ERROR: the
    environment failed, and the rollout is not scored.
    """

    STOP = "stop"
    LENGTH = "length"
    TURNS = "turns"
    DONE = "done"
    ERROR = "error"


@dataclass(frozen=True, slots=True)
class Segment:
    """What one side added to a rollout in one turn.

    Args:
        tokens: how many of the rollout's ids it has, EOS included.
        text: without special tokens.
    """

    tokens: int
    text: str = ""


@dataclass(frozen=True, slots=True)
class Rollout:
    """One completion, exactly as it was sampled; with an environment, a transcript of turns.

    Args:
        text: without special tokens, for people, rewards and later stages; not re-tokenised for training when the
            tokenizers agree. A policy over actions writes their numbers there. Empty when a policy ended at once. Of
            several turns it is the policy's last.
        token_ids: the sampled ids, with EOS when there was one; for a policy over discrete actions, the actions. Ids
            of the environment stand where the policy read them.
        logprobs: natural-log probability of each id of the policy under the sampling policy at its temperature, before
            top-k or top-p, and among the other tokens where EOS was forbidden. These and the ids are tuples where they
            were sampled, a `PackedNumbers` where they came from others.
        finish_reason: STOP when the policy ended it, by EOS or a stop string.
        segments: of the policy and of the environment by turns, the policy first. Empty where the policy alone wrote
            the rollout, which is then one segment.
        turn_rewards: what the environment gave for each turn of the policy when **this** peer played the rollout;
            never sent. NaN for a turn without a reward. Empty without an environment.
    """

    text: str = ""
    token_ids: Sequence[int] = ()
    logprobs: Sequence[float] = ()
    finish_reason: FinishReason = FinishReason.STOP
    segments: tuple[Segment, ...] = ()
    turn_rewards: tuple[float, ...] = field(default=(), compare=False)

    def __post_init__(self) -> None:
        sampled = len(self.token_ids)
        if self.segments:
            sampled = self._check_segments()
        if sampled != len(self.logprobs):
            raise ValueError(f"{sampled} token ids of the policy but {len(self.logprobs)} log-probabilities")

    def _check_segments(self) -> int:
        """Return how many ids the policy sampled."""
        if len(self.segments) == 1:
            raise ValueError("one segment is a rollout without segments")
        if any(segment.tokens < 1 for segment in self.segments[:-1]) or self.segments[-1].tokens < 0:
            raise ValueError("a segment without tokens before the last one")
        tokens = sum(segment.tokens for segment in self.segments)
        if tokens != len(self.token_ids):
            raise ValueError(f"segments of {tokens} tokens but {len(self.token_ids)} token ids")
        if self.text != self.segments[self._last_turn].text:
            raise ValueError("the text is not that of the policy's last turn")
        return sum(segment.tokens for segment in self.segments[::2])

    @property
    def _last_turn(self) -> int:
        return (len(self.segments) - 1) // 2 * 2

    @property
    def turns(self) -> tuple[str, ...]:
        """The texts of the policy, one a turn."""
        return tuple(segment.text for segment in self.segments[::2]) if self.segments else (self.text,)

    @property
    def turn_ids(self) -> Iterator[tuple[Sequence[int], str]]:
        """The ids and the text of each turn of the policy."""
        if not self.segments:
            yield self.token_ids, self.text
        at = 0
        for index, segment in enumerate(self.segments):
            if index % 2 == 0:
                yield self.token_ids[at : at + segment.tokens], segment.text
            at += segment.tokens

    @property
    def observations(self) -> tuple[str, ...]:
        """The texts of the environment, one after each turn that it answered."""
        return tuple(segment.text for segment in self.segments[1::2])

    @property
    def trained(self) -> tuple[bool, ...]:
        """For each id, whether the policy sampled it; the environment's are context only."""
        if not self.segments:
            return (True,) * len(self.token_ids)
        return tuple(index % 2 == 0 for index, segment in enumerate(self.segments) for _ in range(segment.tokens))
