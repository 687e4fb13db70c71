"""Transcripts of a peer: its ranks divide the prompts, play their share, and gather all of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgpack

from swarmgame.errors import BadGame, InvalidManifest
from swarmgame.game.components import ComponentContext
from swarmgame.game.environment import Episodes
from swarmgame.game.state import FinishReason, Prompt, Rollout, Segment
from swarmgame.inference.sampler import Sampled, SamplingParams
from swarmgame.inference.stop_strings import cut_at_stop
from swarmgame.trainer.grpo.config import GRPOConfig
from swarmgame.trainer.grpo.generation import Generation
from swarmgame.trainer.grpo.policy import Policy
from swarmgame.trainer.grpo.transcripts import Transcripts
from swarmgame.trainer.grpo.turn_template import TurnTemplate

_JOINED = 16
"""Ids that a text may gain where the template's words meet it."""


class PeerTranscripts:
    """Plays the game's environment with the policy.

    Raises:
        InvalidManifest: the model's chat template does not take observations, or an option does not fit turns.
    """

    def __init__(self, policy: Policy, generation: Generation, context: ComponentContext, episodes: Episodes) -> None:
        config = policy.config
        check_options(config)
        self._policy, self._generation, self._ranks = policy, generation, context.ranks
        self._episodes = episodes
        self._template = TurnTemplate(
            policy.tokenizer,
            context.model_uri,
            role=episodes.role,
            ends=policy.eos_token_ids,
            variables=config.chat_template_kwargs,
        )
        room = policy.longest_prompt + config.max_new_tokens
        around = len(self._template("", last=None, longest=1)) + _JOINED
        observed = episodes.max_turns * (episodes.max_observation_tokens + around)
        self.longest = min(room, config.max_new_tokens + observed)
        """Most ids of a transcript."""
        self._play = Transcripts(episodes, self._template, self._sample, policy.completions.of_own, room=room)

    def __call__(self, prompts: Sequence[Prompt], n: int, params: SamplingParams, seed: int) -> list[list[Rollout]]:
        """Return `n` transcripts of each prompt, on every rank.

        Args:
            seed: of this rank; ranks must differ.

        Raises:
            BadGame: the environment failed in every episode; with the author's lines.
        """
        own = prompts[self._ranks.rank :: self._ranks.size]
        questions = [self._episodes.questions[prompt.question_id] for prompt in own]
        groups = self._play(questions, [prompt.token_ids for prompt in own], n, params, seed)
        if self._ranks.size > 1:
            dealt = [_unpacked(payload) for payload in self._ranks.gather(_packed(groups))]
            groups = [dealt[index % self._ranks.size][index // self._ranks.size] for index in range(len(prompts))]
        self._require_one(groups)
        return groups

    def _require_one(self, groups: Sequence[Sequence[Rollout]]) -> None:
        rollouts = [rollout for group in groups for rollout in group]
        if rollouts and all(rollout.finish_reason is FinishReason.ERROR for rollout in rollouts):
            failure = self._play.failure
            what = "see the log of the first process" if failure is None else f"{failure}{failure.below}"
            raise BadGame(f"the environment failed in all {len(rollouts)} episodes of a round: {what}")

    def observation_ids(self, observation: str, last: int) -> tuple[int, ...]:
        """Return the ids of an observation; see `Trainer.observation_ids`."""
        return self._template(observation, last=last, longest=self._episodes.max_observation_tokens)

    def _sample(
        self, prompts: Sequence[tuple[int, ...]], n: int, params: SamplingParams, *, seed: int, budgets: Sequence[int]
    ) -> Sequence[Sampled]:
        sampled = self._generation.turn(prompts, n, params, seed=seed, budgets=budgets)
        return [cut_at_stop(each, params.stop, self._policy.decode) for each in sampled]


def check_options(config: GRPOConfig) -> None:
    """Check that the trainer's options fit turns.

    Raises:
        InvalidManifest: one does not.
    """
    path = "spec.game.trainer.with"
    if config.min_new_tokens:
        raise InvalidManifest(f"{path}.minNewTokens", config.min_new_tokens, "0 in a game with an environment")
    if config.overlap:
        raise InvalidManifest(f"{path}.overlap", True, "false in a game with an environment")


def transcripts_of(policy: Policy, generation: Generation, context: ComponentContext) -> PeerTranscripts | None:
    """Return what plays the game's environment; None where the game has none."""
    return PeerTranscripts(policy, generation, context, context.episodes) if context.episodes is not None else None


def _packed(groups: list[list[Rollout]]) -> bytes:
    plain = [
        [
            (
                each.text,
                list(each.token_ids),
                list(each.logprobs),
                each.finish_reason.value,
                [(segment.tokens, segment.text) for segment in each.segments],
                list(each.turn_rewards),
            )
            for each in group
        ]
        for group in groups
    ]
    packed: bytes = msgpack.packb(plain, unicode_errors="surrogatepass")
    return packed


def _unpacked(payload: bytes) -> list[list[Rollout]]:
    plain: Any = msgpack.unpackb(payload, unicode_errors="surrogatepass")
    return [
        [
            Rollout(
                text,
                tuple(ids),
                tuple(logprobs),
                FinishReason(reason),
                tuple(Segment(tokens, written) for tokens, written in segments),
                tuple(rewards),
            )
            for text, ids, logprobs, reason, segments, rewards in group
        ]
        for group in plain
    ]
