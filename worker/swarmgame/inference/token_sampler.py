"""Sample one token a row from logits, by inverting the cumulative distribution at a given uniform number.

No step waits for the device. `kernels.py` does the same in two passes over the vocabulary for the plain case. Shapes:
B rows, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from swarmgame.inference.sampler import ONE_MINUS_EPS, SamplingParams

BLOCK = 128
"""Ids of a block, where a vocabulary is searched by blocks."""

BLOCKED_FROM = 4096
"""Vocabularies of this size and more are searched by blocks."""


class TokenSampler:
    """Samples with fixed parameters.

    Args:
        params: temperature, filters.
        eos_token_ids: ids that are not sampled while EOS is forbidden.
    """

    def __init__(self, params: SamplingParams, eos_token_ids: Sequence[int]) -> None:
        self.params = params
        self._eos_ids = list(eos_token_ids)
        self._eos: Tensor | None = None

    def __call__(self, logits_BV: Tensor, uniform_B: Tensor, *, forbid_eos: bool | Tensor) -> tuple[Tensor, Tensor]:
        """Return token ids and their log-probabilities (fp32), each [B].

        Args:
            uniform_B: fp64; ignored when greedy.
            forbid_eos: for all rows, or one bool a row [B]. EOS then counts as impossible, and log-probabilities are
                those of the other tokens. NaN where a row's logits are not finite.
        """
        # Dividing needs fp32; where there is nothing to divide, the softmax reads the logits as they are.
        scaled = logits_BV if self.params.temperature == 1.0 else logits_BV.float() / self.params.temperature
        # Before the softmax: beside a policy that is sure of EOS every other probability underflows to 0.
        scaled = self._without_eos(scaled, forbid_eos)
        if not self.params.is_plain:
            logprobs = torch.log_softmax(scaled, dim=-1, dtype=torch.float32)
            allowed = self._filtered(logprobs)
            ids = allowed.argmax(dim=-1) if self.params.greedy else self._invert(allowed.exp(), uniform_B)
            return ids, logprobs.gather(1, ids.unsqueeze(1)).squeeze(1)
        # Only the sampled token's logarithm is needed; its probability is not 0.
        probabilities = torch.softmax(scaled, dim=-1, dtype=torch.float32)
        ids = self._invert(probabilities, uniform_B)
        return ids, probabilities.gather(1, ids.unsqueeze(1)).squeeze(1).log_()

    @staticmethod
    def _invert(probabilities_BV: Tensor, uniform_B: Tensor) -> Tensor:
        """Return the token at which the cumulative sum passes a share of the total."""
        if probabilities_BV.shape[1] < BLOCKED_FROM:
            return _search(probabilities_BV.cumsum(dim=-1, dtype=torch.float64), uniform_B)[0].squeeze(1)
        # First the block, then the token in it: all sums of a wide vocabulary in fp64 would be several times the
        # traffic of its probabilities.
        rest = -probabilities_BV.shape[1] % BLOCK
        blocks = (F.pad(probabilities_BV, (0, rest)) if rest else probabilities_BV).view(
            len(probabilities_BV), -1, BLOCK
        )
        sums = blocks.sum(dim=-1, dtype=torch.float64)
        cumulative = sums.cumsum(dim=-1)
        block, target = _search(cumulative, uniform_B)
        own = sums.gather(1, block)
        # The share of the block that is left, below 1 whatever was rounded.
        within = ((target - cumulative.gather(1, block) + own) / own).squeeze(1).clamp_(0.0, ONE_MINUS_EPS)
        chosen = blocks.gather(1, block.unsqueeze(2).expand(-1, 1, BLOCK)).squeeze(1)
        place, _ = _search(chosen.cumsum(dim=-1, dtype=torch.float64), within)
        # Sums that are NaN lead to the last block's padding.
        return (block * BLOCK + place).squeeze(1).clamp_(max=probabilities_BV.shape[1] - 1)

    def _without_eos(self, x: Tensor, forbid_eos: bool | Tensor) -> Tensor:
        if forbid_eos is False or not self._eos_ids:
            return x
        if self._eos is None:
            self._eos = torch.tensor(self._eos_ids, device=x.device)
        if forbid_eos is True:
            return x.index_fill(1, self._eos, -torch.inf)
        kept = torch.where(forbid_eos.unsqueeze(1), -torch.inf, x.index_select(1, self._eos))
        return x.index_copy(1, self._eos, kept)

    def _filtered(self, allowed: Tensor) -> Tensor:
        """Log-probabilities with -inf for what may not be sampled: all but top-k, then all but top-p."""
        params = self.params
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


def _search(cumulative: Tensor, share_B: Tensor) -> tuple[Tensor, Tensor]:
    """Return where the sums pass a share of the last one, and that target; both [B, 1]. Sums are fp64: in fp32 a
    vocabulary of 150,000 would lose its tail to rounding."""
    # The target stays below the last sum; right=True: never a token of probability zero.
    target = cumulative[:, -1:] * share_B.unsqueeze(1)
    return torch.searchsorted(cumulative, target, right=True).clamp_(max=cumulative.shape[1] - 1), target
