"""Requests: what `Trainer.generate` samples for one stage of a round, from prompts, options and seeds."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import astuple, dataclass, replace

from swarmgame.game.ranks import Ranks
from swarmgame.game.state import Prompt, Round
from swarmgame.inference.sampler import SamplingParams
from swarmgame.seeds import derive_seed
from swarmgame.trainer.grpo.policy import Policy


@dataclass(frozen=True)
class Request:
    """What `Trainer.generate` samples for one stage of a round.

    Args:
        round: number of the round.
        prompts: with their token ids.
        n: completions a prompt.
        params: how to sample.
        seed: of this rank.
        key: digest of all that decides the completions but the weights; equal on all ranks.
    """

    round: int
    prompts: tuple[Prompt, ...]
    n: int
    params: SamplingParams
    seed: int
    key: str

    @classmethod
    def of(
        cls, round: Round, prompts: Sequence[Prompt], n: int, params: SamplingParams, *, seed: int, ranks: int
    ) -> Request:
        """The request of a round's stage; `ranks` is how many processes share it."""
        encoded = [[p.question_id, [[m.role, m.content] for m in p.messages], p.token_ids] for p in prompts]
        text = json.dumps(
            [round.peer_seed, round.number, round.stage, round.evaluation, n, astuple(params), ranks, encoded]
        )
        key = hashlib.blake2b(text.encode(), digest_size=16, person=b"swarmgame-ahead").hexdigest()
        return cls(round.number, tuple(prompts), n, params, seed, key)

    @property
    def token_ids(self) -> list[tuple[int, ...]]:
        return [prompt.token_ids for prompt in self.prompts]


def request_of(policy: Policy, prompts: Sequence[Prompt], round: Round, ranks: Ranks) -> Request:
    """Return the request of a stage; its number of completions and temperature are others in an evaluation."""
    config = policy.config
    encoded = [replace(prompt, token_ids=policy.encode(prompt)) for prompt in prompts]
    generations, temperature = config.generations, config.temperature
    if round.evaluation:
        generations, temperature = config.evaluation_generations, config.evaluation_temperature
        if round.sampling is not None:
            generations, temperature = round.sampling.samples, round.sampling.temperature or config.temperature
    params = SamplingParams(
        max_new_tokens=config.max_new_tokens,
        temperature=temperature or 1.0,
        top_k=config.top_k,
        top_p=config.top_p,
        min_new_tokens=config.min_new_tokens,
        greedy=temperature == 0,
        stop=config.stop,
    )
    purpose = "evaluate" if round.evaluation else "generate"
    seed = derive_seed(round.peer_seed, purpose, round.number, round.stage, ranks.rank)
    return Request.of(round, encoded, generations, params, seed=seed, ranks=ranks.size)
