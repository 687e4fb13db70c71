"""The layout of a packed micro-batch: one sequence without padding, in which each distinct prompt stands once.

The sequence holds the distinct prompts, then the completions, each without its last token, which predicts nothing. A
completion attends to its prompt and to itself: attention therefore has one segment per prompt and one per completion,
and `key_index_K` lists the keys of all segments one after the other (a prompt's keys are listed again for each of its
completions). Queries are the sequence itself, in order. A prompt's last token predicts the first token of each of its
completions. Only arrays of numbers on the CPU here; `packed_forward` runs a model on them.

Shapes: T tokens of the sequence, K listed keys, S segments, N scored tokens (all tokens of all completions), B
completions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Integers = NDArray[np.int64]


@dataclass(frozen=True)
class PackedLayout:
    """Where everything of a micro-batch stands.

    Args:
        token_T, position_T: ids, and places counted from the beginning of the prompt.
        key_index_K: the token of the sequence that each listed key belongs to.
        query_starts_S, key_starts_S: S + 1 boundaries of the segments, among the tokens and among the listed keys. In
            a segment, the last query attends to all keys, the one before it to all but the last, and so on.
        longest_query, longest_key: of any segment.
        source_N: the token whose hidden state predicts each scored token.
        target_N: the scored tokens' ids, completion after completion.
        row_N, place_N: the completion of each scored token, and its place in it.
        shape: B, and the length of the longest completion.
    """

    token_T: Integers
    position_T: Integers
    key_index_K: Integers
    query_starts_S: Integers
    key_starts_S: Integers
    longest_query: int
    longest_key: int
    source_N: Integers
    target_N: Integers
    row_N: Integers
    place_N: Integers
    shape: tuple[int, int]


def packed_tokens(prompts: Sequence[Sequence[int]], completions: Sequence[Sequence[int]]) -> int:
    """Count the tokens of the distinct prompts and of all completions."""
    return sum(map(len, {tuple(prompt) for prompt in prompts})) + sum(map(len, completions))


def pack(prompts: Sequence[Sequence[int]], completions: Sequence[Sequence[int]]) -> PackedLayout:
    """Lay out a micro-batch of rollouts.

    Args:
        prompts, completions: one per rollout, each non-empty; equal prompts are stored once.

    Raises:
        ValueError: a prompt or completion is empty, or their numbers differ.
    """
    if len(prompts) != len(completions) or not prompts:
        raise ValueError(
            f"{len(prompts)} prompts but {len(completions)} completions; expected as many of each, at least one"
        )
    if any(not len(ids) for ids in (*prompts, *completions)):
        raise ValueError("a prompt or completion is empty; expected at least one token each")
    distinct = {tuple(prompt): index for index, prompt in enumerate(dict.fromkeys(map(tuple, prompts)))}
    prompt_starts = _starts([len(prompt) for prompt in distinct])
    own = [len(completion) - 1 for completion in completions]
    own_starts = prompt_starts[-1] + _starts(own)

    spans = [(start, start + len(prompt)) for prompt, start in zip(distinct, prompt_starts.tolist(), strict=False)]
    tokens = [np.asarray(prompt, dtype=np.int64) for prompt in distinct]
    positions = [np.arange(len(prompt)) for prompt in distinct]
    keys = [np.arange(*span) for span in spans]
    queries = [len(prompt) for prompt in distinct]
    attended = list(queries)
    sources, targets = [], []
    for prompt, completion, start, length in zip(prompts, completions, own_starts.tolist(), own, strict=False):
        first, last = spans[distinct[tuple(prompt)]]
        ids = np.asarray(completion, dtype=np.int64)
        places = np.arange(start, start + length)
        sources += [np.array([last - 1]), places]
        targets.append(ids)
        if length:  # a completion of one token is predicted by its prompt alone
            tokens.append(ids[:-1])
            positions.append(last - first + np.arange(length))
            keys += [np.arange(first, last), places]
            queries.append(length)
            attended.append(last - first + length)
    lengths_B = np.array(own) + 1
    return PackedLayout(
        token_T=np.concatenate(tokens),
        position_T=np.concatenate(positions),
        key_index_K=np.concatenate(keys),
        query_starts_S=_starts(queries),
        key_starts_S=_starts(attended),
        longest_query=max(queries),
        longest_key=max(attended),
        source_N=np.concatenate(sources),
        target_N=np.concatenate(targets),
        row_N=np.repeat(np.arange(len(lengths_B)), lengths_B),
        place_N=np.concatenate([np.arange(length) for length in lengths_B]),
        shape=(len(lengths_B), int(lengths_B.max())),
    )


def _starts(lengths: Sequence[int]) -> Integers:
    """Return where each of some lengths begins when they stand side by side, and the end of the last."""
    return np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
