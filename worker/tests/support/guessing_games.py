"""Guessing games for tests: the built-in environment over toy questions, played without a sandbox or a model."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from typing import Any

from toys import CHOICES, ToyTrainer

from swarmgame import GameState, Group, GroupKey, Prompt, Round
from swarmgame.environments.play import call_of, described, play
from swarmgame.game.environment import Episodes, Play, Step
from swarmgame.game.state import PeerId, Question
from swarmgame.inference.sampler import Sampled, SamplingParams
from swarmgame.seeds import derive_seed
from swarmgame.trainer.grpo.transcripts import Transcripts
from swarmgame.user_code import describe

GUESSING = "swarmgame.environments.number_guessing:NumberGuessing"
END = 0
"""The id with which the policy ends a turn."""


class LocalEpisodes(Episodes):
    """Plays an environment in this process, with the function that the sandbox calls."""

    def __init__(
        self, use: str = GUESSING, options: Mapping[str, Any] | None = None, *, max_turns: int = 3, tokens: int = 64
    ) -> None:
        super().__init__(max_turns=max_turns, max_observation_tokens=tokens, role="user")
        self._call = call_of(use, options or {}, None, 0)
        self.authors: list[PeerId] = []
        """Whose turns were played, one entry a call."""

    def play(
        self, plays: Sequence[tuple[Question, Sequence[str]]], *, author: PeerId = "", waiting: int = 1
    ) -> Sequence[Play]:
        self.authors.append(author)
        return [self._play(question, turns) for question, turns in plays]

    def _play(self, question: Question, turns: Sequence[str]) -> Play:
        try:
            found = play(*self._call, described(question), turns)
        except Exception as error:  # noqa: BLE001 — an environment may raise anything
            return Play(failure=describe(error))
        return Play(tuple(Step(*step) for step in found["steps"]), found["first"])

    def begin_round(self, number: int) -> None:
        """Nothing is bounded."""

    def close(self) -> None:
        """Nothing to release."""


def observation_ids(observation: str, last: int | None) -> tuple[int, ...]:
    return tuple(map(ord, f"|{observation}|"))


class GuessingTrainer(ToyTrainer):
    """A policy that guesses digits at random; its ids are characters. It learns nothing."""

    plays_episodes = True

    def __init__(self, episodes: Episodes, *, generations: int = 4, tokens: int = 12) -> None:
        super().__init__(ToyTrainer.Config(generations=generations))
        self.episodes = episodes
        self.tokens = tokens

    @property
    def tokenizer(self) -> str:
        return "characters"

    def decode(self, token_ids: Sequence[int]) -> str | None:
        return "".join(chr(each) for each in token_ids if each != END)

    def observation_ids(self, observation: str, last: int) -> Sequence[int] | None:
        return observation_ids(observation, last)

    def generate(self, prompts: Sequence[Prompt], round: Round) -> Sequence[Group]:
        def template(observation: str, *, last: int | None, longest: int) -> tuple[int, ...]:
            return observation_ids(observation[:longest], last)

        playing = Transcripts(self.episodes, template, self._sample, lambda ids: self.decode(ids) or "", room=None)  # type: ignore[arg-type]
        questions = [self.episodes.questions[prompt.question_id] for prompt in prompts]
        seed = derive_seed(round.peer_seed, "sample", round.number, round.stage, int(round.evaluation))
        groups = playing(questions, [(63,)] * len(prompts), self.config.generations, SamplingParams(self.tokens), seed)
        return [Group(prompt, tuple(group)) for prompt, group in zip(prompts, groups, strict=True)]

    def train(self, state: GameState, rewards: Mapping[GroupKey, Sequence[float]]) -> Mapping[str, float]:
        self.trained += [*(key for key, _ in state.own_groups()), *state.external]
        self.updates += 1
        return {}

    def _sample(
        self, prompts: Sequence[tuple[int, ...]], n: int, params: SamplingParams, *, seed: int, budgets: Sequence[int]
    ) -> Sequence[Sampled]:
        made = []
        for row, budget in enumerate(budget for budget in budgets for _ in range(n)):
            guess = random.Random(derive_seed(seed, row)).randrange(CHOICES)
            ids, logprobs = (ord(str(guess)), END), (math.log(1 / CHOICES), 0.0)
            made.append(Sampled(ids[:budget], logprobs[:budget], stopped=budget > 1))
        return made
