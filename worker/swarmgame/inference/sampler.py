"""The protocol of samplers: prompts in, token-exact completions out.

Holds the request (`SamplingParams`), the answer (`Sampled`) and what samplers of a transformers model share. Backends:
`eager.py` (any model, any device), `engine.py` (CUDA graphs, continuous batching), `vllm.py` (another process). A
completion holds exactly the sampled ids, EOS included, and for each id the log-probability under the policy at the
sampling temperature, before top-k and top-p; where EOS was forbidden it is that among the other tokens, as in training
(`logprobs.EarlyEos`). A log-probability is NaN where the logits were not finite. Completions depend on the seed, the
prompts and `n`, not on which rows shared a batch or when they left it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from swarmgame.inference.decoding import Decoding

ONE_MINUS_EPS = 1.0 - 1e-12
"""A share of a sum that stays below the sum after rounding in fp64."""


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How to sample.

    Args:
        max_new_tokens: budget of a completion, EOS included, at least 1.
        temperature: divides the logits; positive.
        top_k: sample among the k likeliest tokens only; 0 means all.
        top_p: sample among the fewest tokens that together have this probability; 1 means all.
        min_new_tokens: EOS is not sampled before that many tokens.
        greedy: take the likeliest token instead of sampling.
        stop: strings that end a completion. An engine of another process may end there; whoever reads the completion
            cuts what is beyond (`stop_strings`).
    """

    max_new_tokens: int
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_new_tokens: int = 0
    greedy: bool = False
    stop: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise ValueError(f"max_new_tokens is {self.max_new_tokens}; expected at least 1")
        if not self.temperature > 0:
            raise ValueError(
                f"temperature is {self.temperature}; expected a positive number (greedy=True takes the likeliest token)"
            )
        if self.top_k < 0:
            raise ValueError(f"top_k is {self.top_k}; expected 0 for all tokens, or a positive number")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p is {self.top_p}; expected a number in (0, 1]")
        if not 0 <= self.min_new_tokens <= self.max_new_tokens:
            raise ValueError(f"min_new_tokens is {self.min_new_tokens}; expected 0 to max_new_tokens")

    @property
    def is_plain(self) -> bool:
        """Whether tokens are sampled from the full distribution: no top-k, no top-p, not greedy."""
        return not (self.greedy or self.top_k or self.top_p < 1)


@dataclass(frozen=True, slots=True)
class Sampled:
    """One completion.

    Args:
        token_ids: as sampled, with EOS when it was.
        logprobs: one an id, natural logarithm.
        stopped: whether the last id is an EOS, or completes a stop string; otherwise the budget ran out.
    """

    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    stopped: bool


class Sampler(Protocol):
    """Anything that samples from the policy."""

    @property
    def exact(self) -> bool:
        """Whether log-probabilities are those of the training forward but for rounding. Those of another engine are
        not, and its rollouts are weighted like those of a remote policy."""
        ...

    @property
    def uses_model(self) -> bool:
        """Whether sampling computes with the policy's own modules, so that training must not run at the same time (the
        weights, and train or evaluation mode, are shared). False for an engine with weights of its own, which change
        in `update_weights` alone."""
        ...

    def sample(
        self,
        prompts: Sequence[Sequence[int]],
        n: int,
        params: SamplingParams,
        seed: int,
        *,
        first_row: int = 0,
        budgets: Sequence[int] | None = None,
    ) -> list[list[Sampled]]:
        """Sample `n` completions of each prompt.

        Args:
            prompts: token ids, each non-empty; lengths may differ.
            n: completions a prompt, at least 1.
            seed: the only source of randomness, 0 ≤ seed < 2^64.
            first_row: number of the first completion; row r of a call gets the random numbers of row `first_row + r`,
                so a batch that is split into two calls samples the same tokens.
            budgets: tokens that each prompt's completions may have, 1 to `params.max_new_tokens`; None: the latter for
                all.

        Returns:
            One list a prompt, in order, of `n` completions.

        Raises:
            ValueError: a prompt is empty, `n` is below 1, or a budget is out of range.
        """
        ...

    def update_weights(self, version: int) -> None:
        """Take note that the policy's weights have changed, in place; `version` counts optimizer steps."""
        ...

    def limit(self, rows: int) -> int:
        """Hold at most `rows` completions in the device at once from now on; return how many a call may request."""
        ...

    def release(self) -> bool:
        """Give back the device memory that is held between calls; return whether there was any."""
        ...

    def metrics(self) -> Mapping[str, float]:
        """Return what an engine did since the last call, by names that begin with `engine_`; nothing for a sampler of
        this process.
        """
        ...

    def close(self) -> None:
        """Give back processes and files."""
        ...


class ModelSampler(ABC):
    """What samplers of a transformers model share: arguments, checks, and the model's mode.

    Args:
        model: a causal language model of transformers; put into evaluation mode while sampling, and back afterwards.
        eos_token_ids: ids that end a completion.
        pad_token_id: any valid id; never attended to.
    """

    exact = True
    uses_model = True

    def __init__(self, model: Any, eos_token_ids: Sequence[int], pad_token_id: int) -> None:
        self.model = model
        self.eos_token_ids = tuple(eos_token_ids)
        self.pad_token_id = pad_token_id
        self.decoding = self.quickest

    @property
    @abstractmethod
    def quickest(self) -> Decoding:
        """The quickest way to take steps that this sampler has for the model; `decoding` is set to a slower one where
        it does not give the model's numbers.
        """

    @torch.inference_mode()
    def sample(
        self,
        prompts: Sequence[Sequence[int]],
        n: int,
        params: SamplingParams,
        seed: int,
        *,
        first_row: int = 0,
        budgets: Sequence[int] | None = None,
    ) -> list[list[Sampled]]:
        """See `Sampler.sample`."""
        check_request(prompts, n, params, budgets)
        if not prompts:
            return []
        row_budgets = [budget for budget in (budgets or [params.max_new_tokens] * len(prompts)) for _ in range(n)]
        was_training = self.model.training
        self.model.eval()
        try:
            rows = self._rollout(prompts, n, params, uniforms(len(row_budgets), params, seed, first_row), row_budgets)
        finally:
            self.model.train(was_training)
        completions = truncate(*rows, self.eos_token_ids, row_budgets)
        return [completions[start : start + n] for start in range(0, len(completions), n)]

    def update_weights(self, version: int) -> None:  # noqa: B027 — a sampler that reads the model's own weights has nothing to do
        """See `Sampler.update_weights`."""

    def limit(self, rows: int) -> int:
        """See `Sampler.limit`; all completions of a call are in the device at once, unless a sampler overrides it."""
        return rows

    def release(self) -> bool:
        """See `Sampler.release`; nothing is held, unless a sampler overrides it."""
        return False

    def metrics(self) -> Mapping[str, float]:
        """See `Sampler.metrics`."""
        return {}

    def close(self) -> None:  # noqa: B027 — nothing is held
        """See `Sampler.close`."""

    @abstractmethod
    def _rollout(
        self,
        prompts: Sequence[Sequence[int]],
        n: int,
        params: SamplingParams,
        uniforms_RT: Tensor,
        budgets: Sequence[int],
    ) -> tuple[Tensor, Tensor]:
        """Return ids and log-probabilities, each [rows, max_new_tokens]; what stands behind a row's EOS or budget is
        ignored.

        Args:
            uniforms_RT: see `uniforms`; on the CPU.
            budgets: one a row.
        """


def uniforms(rows: int, params: SamplingParams, seed: int, first_row: int = 0) -> Tensor:
    """Return all random numbers of a call: fp64 in [0, `ONE_MINUS_EPS`], [rows, max_new_tokens], on the CPU; [rows, 0]
    when greedy.

    They come from a counter-based generator (Philox, Salmon et al. 2011), so a row's numbers depend on the seed and
    its place alone. They are made on the CPU for every device: a device's generator gives a row other numbers when
    other rows are drawn with it.
    """
    if params.greedy:
        return torch.empty(rows, 0, dtype=torch.float64)
    blocks = -(-params.max_new_tokens // 4)  # one count of Philox4x64 gives four numbers
    philox = np.random.Philox(key=seed).advance(first_row * blocks)
    numbers = np.random.Generator(philox).random((rows, 4 * blocks))[:, : params.max_new_tokens]
    return torch.from_numpy(numbers).clamp_(max=ONE_MINUS_EPS)


def check_request(
    prompts: Sequence[Sequence[int]], n: int, params: SamplingParams, budgets: Sequence[int] | None
) -> None:
    """Raise ValueError for a request that no backend can answer."""
    if n < 1:
        raise ValueError(f"n is {n}; expected at least one completion a prompt")
    empty = [number for number, prompt in enumerate(prompts) if not len(prompt)]
    if empty:
        raise ValueError(f"prompts {empty} are empty; expected at least one token each")
    if budgets is None:
        return
    if len(budgets) != len(prompts) or any(not 1 <= budget <= params.max_new_tokens for budget in budgets):
        raise ValueError(
            f"budgets are {list(budgets)}; expected one a prompt, each of 1 to {params.max_new_tokens} tokens"
        )


def truncate(
    ids_RT: Tensor, logprobs_RT: Tensor, eos_token_ids: Sequence[int], budgets: Sequence[int]
) -> list[Sampled]:
    """End each row behind its first EOS or at its budget."""
    is_eos = torch.zeros_like(ids_RT, dtype=torch.bool)
    for eos in eos_token_ids:
        is_eos |= ids_RT == eos
    first_eos = torch.where(is_eos.any(dim=1), is_eos.int().argmax(dim=1), ids_RT.shape[1]).tolist()
    stops = [min(eos + 1, budget, ids_RT.shape[1]) for eos, budget in zip(first_eos, budgets, strict=True)]
    # Only what is kept becomes Python objects: a rectangle may be many times as large.
    ids, logprobs = (drawn[:, : max(stops)].cpu().numpy() for drawn in (ids_RT, logprobs_RT))
    return [
        Sampled(tuple(ids[row, :stop].tolist()), tuple(logprobs[row, :stop].tolist()), stopped=first_eos[row] < stop)
        for row, stop in enumerate(stops)
    ]
