"""Rollouts of several turns: the policy samples a turn of every episode, the environment answers, and so on.

All episodes of a round are rows of one batch; those that go on are sampled together in the next turn, behind all that
they have read and written before. Invariant: the ids that the policy sampled stand in the transcript as they were
sampled, and a transcript depends on seeds, prompts, weights and the environment only.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from swarmgame.game.environment import Episodes, Play
from swarmgame.game.state import FinishReason, Question, Rollout, Segment
from swarmgame.inference.sampler import Sampled, SamplingParams
from swarmgame.seeds import derive_seed
from swarmgame.trainer.grpo.turn_template import TurnTemplate
from swarmgame.user_code import CodeError


class SampleTurn(Protocol):
    """Samples `n` completions of each prompt, one prompt after the other, within each prompt's budget of tokens."""

    def __call__(
        self, prompts: Sequence[tuple[int, ...]], n: int, params: SamplingParams, *, seed: int, budgets: Sequence[int]
    ) -> Sequence[Sampled]: ...


@dataclass(slots=True)
class _Episode:
    """One transcript in the making.

    Args:
        room: ids that the model has for prompt and transcript together.
    """

    question: Question
    prompt: tuple[int, ...]
    room: int
    ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    segments: list[Segment] = field(default_factory=list)
    rewards: list[float] = field(default_factory=list)
    reason: FinishReason | None = None

    @property
    def turns(self) -> list[str]:
        return [segment.text for segment in self.segments[::2]]

    @property
    def sampled(self) -> int:
        return len(self.logprobs)

    @property
    def left(self) -> int:
        """Ids for which the model has room."""
        return self.room - len(self.prompt) - len(self.ids)

    def rollout(self) -> Rollout:
        assert self.reason is not None
        text = self.turns[-1]
        segments = tuple(self.segments) if len(self.segments) > 1 else ()
        return Rollout(text, tuple(self.ids), tuple(self.logprobs), self.reason, segments, tuple(self.rewards))


class Transcripts:
    """Plays the episodes of a round.

    Args:
        sample: a turn of rows.
        text_of: ids of the policy's turn to its text.
        room: ids that the model has for prompt and transcript together; None: no limit.
    """

    def __init__(
        self,
        episodes: Episodes,
        template: TurnTemplate,
        sample: SampleTurn,
        text_of: Callable[[Sequence[int]], str],
        *,
        room: int | None,
    ) -> None:
        self._environment = episodes
        self._template = template
        self._sample = sample
        self._text_of = text_of
        self._room = room if room is not None else 1 << 31
        self.failure: CodeError | None = None
        """The first failure of the environment so far."""

    def __call__(
        self,
        questions: Sequence[Question],
        prompts: Sequence[tuple[int, ...]],
        n: int,
        params: SamplingParams,
        seed: int,
    ) -> list[list[Rollout]]:
        """Return `n` transcripts of each prompt.

        Args:
            questions: of the prompts.
            params: `max_new_tokens` is for all turns of a transcript together.
        """
        every = [
            _Episode(question, prompt, self._room)
            for question, prompt in zip(questions, prompts, strict=True)
            for _ in range(n)
        ]
        turn, active = 0, every
        while active:
            # All copies of a prompt begin with the same ids, which are read once.
            self._take_turn(active, 1 if turn else n, params, derive_seed(seed, "turn", turn))
            going = [episode for episode in active if episode.reason is None]
            plays = self._environment.play([(episode.question, episode.turns) for episode in going])
            for episode, play in zip(going, plays, strict=True):
                self._answer(episode, play, turn, params.max_new_tokens)
            turn, active = turn + 1, [episode for episode in active if episode.reason is None]
        return [[episode.rollout() for episode in every[index * n : (index + 1) * n]] for index in range(len(prompts))]

    def _take_turn(self, active: Sequence[_Episode], n: int, params: SamplingParams, seed: int) -> None:
        """Sample a turn of each episode, of which `n` in a row have read and written the same."""
        budgets = [min(params.max_new_tokens - episode.sampled, episode.left) for episode in active[::n]]
        prompts = [(*episode.prompt, *episode.ids) for episode in active[::n]]
        # The parameters stay the same in every turn: a sampler keeps graphs for some of them.
        turns = self._sample(prompts, n, params, seed=seed, budgets=budgets)
        for episode, sampled in zip(active, turns, strict=True):
            episode.ids += sampled.token_ids
            episode.logprobs += sampled.logprobs
            episode.segments.append(Segment(len(sampled.token_ids), self._text_of(sampled.token_ids)))
            if not sampled.stopped:
                # A turn that was cut is no move: the environment does not see it.
                episode.reason = FinishReason.LENGTH

    def _answer(self, episode: _Episode, play: Play, turn: int, budget: int) -> None:
        if play.failure is not None or len(play.steps) <= turn:
            episode.reason = FinishReason.ERROR
            self.failure = self.failure or play.failure
            return
        step = play.steps[turn]
        episode.rewards.append(float("nan") if step.reward is None else step.reward)
        if step.done:
            if step.observation:
                episode.segments.append(Segment(0, step.observation))
            episode.reason = FinishReason.DONE
            return
        ids = self._template(step.observation, last=episode.ids[-1], longest=self._environment.max_observation_tokens)
        if turn + 1 >= self._environment.max_turns:
            episode.segments.append(Segment(0, step.observation))
            episode.reason = FinishReason.TURNS
        elif episode.sampled >= budget or len(ids) >= episode.left:
            episode.segments.append(Segment(0, step.observation))
            episode.reason = FinishReason.LENGTH
        else:
            episode.ids += ids
            episode.segments.append(Segment(len(ids), step.observation))
