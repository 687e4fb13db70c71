"""The sampler's protocol: prompts in, token-exact completions out.

What is asked (`SamplingParams`), what comes back (`Sampled`), and how a token is drawn (`Draw`); backends are `sampler_eager.py` and
`sampler_cudagraph.py`. Invariant: a completion holds exactly the ids that were drawn, EOS included, and for each the log-probability that
the policy gave it at the sampling temperature, before top-k, top-p and minimum lengths; completions depend on the generator, the prompts
and `n`, not on which rows shared a batch or when they left it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

BLOCK = 128
BELOW_ONE = 1.0 - 1e-12
"""A share of a sum that stays below the sum, however both are rounded in fp64."""

WIDE = 4096
"""Vocabularies from here on are searched by blocks of `BLOCK` ids."""


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How to sample.

    Args:
        max_new_tokens: budget of a completion, EOS included, at least 1.
        temperature: divides the logits; positive.
        top_k: draw among the k likeliest tokens only; 0 means all.
        top_p: draw among the fewest tokens that together have this probability; 1 means all.
        min_new_tokens: EOS is not drawn before that many tokens.
        greedy: take the likeliest token instead of drawing.
    """

    max_new_tokens: int
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_new_tokens: int = 0
    greedy: bool = False

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise ValueError(f"max_new_tokens is {self.max_new_tokens}; expected at least 1")
        if not self.temperature > 0:
            raise ValueError(f"temperature is {self.temperature}; expected a positive number (greedy=True takes the likeliest token)")
        if self.top_k < 0:
            raise ValueError(f"top_k is {self.top_k}; expected 0 for all tokens, or a positive number")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p is {self.top_p}; expected a number in (0, 1]")
        if not 0 <= self.min_new_tokens <= self.max_new_tokens:
            raise ValueError(f"min_new_tokens is {self.min_new_tokens}; expected 0 to max_new_tokens")


@dataclass(frozen=True, slots=True)
class Sampled:
    """One completion.

    Args:
        token_ids: as drawn, with EOS when it was.
        logprobs: one an id, natural logarithm.
        stopped: whether the last id is an EOS; otherwise the budget ran out.
    """

    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    stopped: bool


class Sampler(Protocol):
    """Anything that samples from the policy."""

    def sample(self, prompts: Sequence[Sequence[int]], n: int, params: SamplingParams, generator: torch.Generator) -> list[list[Sampled]]:
        """Samples `n` completions of each prompt.

        Args:
            prompts: token ids, each non-empty; lengths may differ.
            n: completions a prompt, at least 1.
            generator: of the CPU, whatever the device; the only source of chance, advanced by the same amount whatever is drawn.

        Returns:
            One list a prompt, in order, of `n` completions.

        Raises:
            ValueError: a prompt is empty, or `n` is below 1.
        """
        ...

    def release(self) -> bool:
        """Gives back what memory of the device is held between calls; returns whether there was any."""
        ...


class ModelSampler(ABC):
    """What samplers of a model of transformers share: what they are given, and the model's mode.

    Args:
        model: a causal language model of transformers; put into evaluation mode while sampling, and back afterwards.
        eos_token_ids: ids that end a completion.
        pad_token_id: any valid id; never attended to.
    """

    def __init__(self, model: Any, eos_token_ids: Sequence[int], pad_token_id: int) -> None:
        self.model = model
        self.eos_token_ids = tuple(eos_token_ids)
        self.pad_token_id = pad_token_id

    @torch.inference_mode()
    def sample(self, prompts: Sequence[Sequence[int]], n: int, params: SamplingParams, generator: torch.Generator) -> list[list[Sampled]]:
        """See `Sampler.sample`."""
        check_request(prompts, n)
        if not prompts:
            return []
        was_training = self.model.training
        self.model.eval()
        try:
            ids, logprobs = self._rollout(prompts, n, params, generator)
        finally:
            self.model.train(was_training)
        return cut(ids, logprobs, self.eos_token_ids, n)

    def release(self) -> bool:
        """See `Sampler.release`; nothing is held, unless a sampler says otherwise."""
        return False

    @abstractmethod
    def _rollout(
        self, prompts: Sequence[Sequence[int]], n: int, params: SamplingParams, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """Ids and log-probabilities, each [rows, max_new_tokens]; whatever stands behind a row's EOS is not looked at."""


def uniforms(rows: int, params: SamplingParams, generator: torch.Generator, device: torch.device) -> Tensor:
    """All chance of a call at once: fp64 in [0, `BELOW_ONE`], of shape [max_new_tokens, rows].

    Drawn row by row, so that a row's chance depends on its place alone, and neither on EOS nor on compaction.
    """
    if params.greedy:
        return torch.empty(params.max_new_tokens, 0, dtype=torch.float64, device=device)
    drawn = torch.rand(rows, params.max_new_tokens, dtype=torch.float64, generator=generator, device=generator.device)
    return drawn.clamp_(max=BELOW_ONE).t().contiguous().to(device)


class Draw:
    """Draws one token a row from logits, by inverting the cumulative distribution at a given uniform number. No sync with the device."""

    def __init__(self, params: SamplingParams, eos_token_ids: Sequence[int]) -> None:
        self.params = params
        self.eos = list(eos_token_ids)
        self._eos: Tensor | None = None

    def __call__(self, logits_BV: Tensor, uniform_B: Tensor, *, forbid_eos: bool) -> tuple[Tensor, Tensor]:
        """Token ids and their log-probabilities (fp32), each [B]."""
        # Dividing needs fp32; where there is nothing to divide, the softmax reads what the model wrote.
        scaled = logits_BV if self.params.temperature == 1.0 else logits_BV.float() / self.params.temperature
        if self.params.greedy or self.params.top_k or self.params.top_p < 1:
            logprobs = torch.log_softmax(scaled, dim=-1, dtype=torch.float32)
            allowed = self._allowed(logprobs, forbid_eos)
            ids = allowed.argmax(dim=-1) if self.params.greedy else self._inverted(allowed.exp(), uniform_B)
            return ids, logprobs.gather(1, ids.unsqueeze(1)).squeeze(1)
        # Nothing but EOS is ever forbidden: no logarithm is needed of tokens that are not drawn. One that is drawn is not 0.
        chances = torch.softmax(scaled, dim=-1, dtype=torch.float32)
        ids = self._inverted(self._but_eos(chances, 0.0) if forbid_eos and self.eos else chances, uniform_B)
        return ids, chances.gather(1, ids.unsqueeze(1)).squeeze(1).log_()

    @staticmethod
    def _inverted(chances: Tensor, uniform_B: Tensor) -> Tensor:
        """The token at which the sum of the chances before it and its own passes a share of all."""
        if chances.shape[1] < WIDE:
            return _passed(chances.cumsum(dim=-1, dtype=torch.float64), uniform_B)[0].squeeze(1)
        # First the block, then the token in it: all sums of a wide vocabulary in fp64 would be several times the traffic of its chances.
        rest = -chances.shape[1] % BLOCK
        blocks = (F.pad(chances, (0, rest)) if rest else chances).view(len(chances), -1, BLOCK)
        sums = blocks.sum(dim=-1, dtype=torch.float64)
        cumulative = sums.cumsum(dim=-1)
        block, target = _passed(cumulative, uniform_B)
        own = sums.gather(1, block)
        # How far into the block, as a share of it below 1, whatever was rounded.
        within = ((target - cumulative.gather(1, block) + own) / own).squeeze(1).clamp_(0.0, BELOW_ONE)
        chosen = blocks.gather(1, block.unsqueeze(2).expand(-1, 1, BLOCK)).squeeze(1)
        place, _ = _passed(chosen.cumsum(dim=-1, dtype=torch.float64), within)
        return (block * BLOCK + place).squeeze(1)

    def _but_eos(self, x: Tensor, instead: float) -> Tensor:
        if self._eos is None:
            self._eos = torch.tensor(self.eos, device=x.device)
        return x.index_fill(1, self._eos, instead)

    def _allowed(self, logprobs: Tensor, forbid_eos: bool) -> Tensor:
        """Log-probabilities with -inf for what may not be drawn: EOS too early, then all but top-k, then all but top-p."""
        params, allowed = self.params, logprobs
        if forbid_eos and self.eos:
            allowed = self._but_eos(allowed, -torch.inf)
        if params.greedy:
            return allowed
        if 0 < params.top_k < allowed.shape[1]:
            least = allowed.topk(params.top_k, dim=-1).values[:, -1:]
            allowed = allowed.masked_fill(allowed < least, -torch.inf)
        if params.top_p < 1:
            ordered, places = allowed.softmax(dim=-1).sort(dim=-1, descending=True)
            # A token stays while those before it do not yet reach top_p; the first always does.
            beyond = (ordered.cumsum(dim=-1) - ordered) >= params.top_p
            allowed = allowed.masked_fill(torch.zeros_like(beyond).scatter(1, places, beyond), -torch.inf)
        return allowed


def _passed(cumulative: Tensor, share_B: Tensor) -> tuple[Tensor, Tensor]:
    """Where the sums (fp64: in fp32 a vocabulary of 150,000 would lose its tail to rounding) pass a share of the last one, and that target;
    both [B, 1]."""
    # The target stays below the last sum; right=True: never one of probability zero.
    target = cumulative[:, -1:] * share_B.unsqueeze(1)
    return torch.searchsorted(cumulative, target, right=True).clamp_(max=cumulative.shape[1] - 1), target


def check_request(prompts: Sequence[Sequence[int]], n: int) -> None:
    """Raises ValueError for what no backend can answer."""
    if n < 1:
        raise ValueError(f"n is {n}; expected at least one completion a prompt")
    empty = [number for number, prompt in enumerate(prompts) if not len(prompt)]
    if empty:
        raise ValueError(f"prompts {empty} are empty; expected at least one token each")


def cut(ids_BT: Tensor, logprobs_BT: Tensor, eos_token_ids: Sequence[int], n: int) -> list[list[Sampled]]:
    """Ends each row behind its first EOS and sorts rows into groups of `n`. Whatever was drawn behind an EOS is dropped."""
    eos = frozenset(eos_token_ids)
    completions = []
    for ids, logprobs in zip(ids_BT.tolist(), logprobs_BT.tolist(), strict=True):
        length = next((place + 1 for place, token in enumerate(ids) if token in eos), 0)
        stop = length or len(ids)
        completions.append(Sampled(tuple(ids[:stop]), tuple(logprobs[:stop]), stopped=length > 0))
    return [completions[start : start + n] for start in range(0, len(completions), n)]
