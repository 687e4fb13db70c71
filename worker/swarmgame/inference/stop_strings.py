"""Stop strings: a completion ends with the token that completes one of them.

What a sampler drew behind that token is left out. The tokens before do not depend on it, so a completion that is cut
is the one of a sampler that stops there.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence

from swarmgame.inference.sampler import Sampled


def cut_at_stop(
    sampled: Sampled, stop: Sequence[str], decode: Callable[[Sequence[int]], str | None], *, least: int = 0
) -> Sampled:
    """Return a completion up to the token that completes the first stop string, which stays in the text.

    Args:
        decode: ids to text, without special tokens.
        least: tokens in which no stop string counts, as no EOS does.
    """
    text = (decode(sampled.token_ids) or "") if stop else ""
    if not any(string in text for string in stop):
        return sampled
    start = len(decode(sampled.token_ids[:least]) or "")

    def has_stop(tokens: int) -> bool:
        text = decode(sampled.token_ids[:tokens]) or ""
        return any(text.find(string, max(0, start - len(string) + 1)) >= 0 for string in stop)

    total = len(sampled.token_ids)
    if not has_stop(total):
        return sampled
    end = bisect_left(range(total), True, lo=min(least + 1, total), key=has_stop)
    return Sampled(sampled.token_ids[:end], sampled.logprobs[:end], stopped=True)
