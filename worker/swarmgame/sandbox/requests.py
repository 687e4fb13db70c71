"""Requests to the sandbox: calls divided so that each request is one that it takes."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

_BATCH_CALLS, _BATCH_CHARACTERS = 512, 8 * 2**20
"""Most of one request to the sandbox, which takes 64 MiB."""


def batches(calls: Sequence[Sequence[Any]]) -> Iterator[Sequence[Sequence[Any]]]:
    """Split calls of the sandbox, in order, into requests that it takes."""
    batch: list[Sequence[Any]] = []
    size = 0
    for call in calls:
        length = len(json.dumps(call))
        if batch and (len(batch) == _BATCH_CALLS or size + length > _BATCH_CHARACTERS):
            yield batch
            batch, size = [], 0
        batch.append(call)
        size += length
    if batch:
        yield batch
