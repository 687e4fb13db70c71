"""What the hub's client raises and logs when the hub cannot be reached.

huggingface_hub 0.x sends requests with requests, 1.x with httpx and 2.x with httpx2. An error of the connection itself
is one of that library's, which is the first base of the client's own `HfHubHTTPError`.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeout
from contextlib import contextmanager
from typing import Any

HUB_SECONDS = 3.0
"""Longest wait for an answer of the hub, before anything is downloaded."""


def unreachable_errors(*others: type[BaseException]) -> tuple[type[BaseException], ...]:
    """Return the exceptions of a hub that cannot be reached or answers with an error, and `others`."""
    from huggingface_hub.errors import HfHubHTTPError

    return (*connection_errors(), HfHubHTTPError, OSError, *others)


def connection_errors() -> tuple[type[BaseException], ...]:
    """Return the exceptions of a connection, and nothing that transformers also raises for a missing file."""
    from huggingface_hub.errors import HfHubHTTPError

    own = tuple(base for base in HfHubHTTPError.__bases__ if issubclass(base, BaseException) and base is not OSError)
    return (*own, ConnectionError, TimeoutError)


def refuses_token(error: BaseException) -> bool:
    """Return whether the hub has refused the token itself (401), as it does for public models too if it has expired."""
    return getattr(getattr(error, "response", None), "status_code", None) == 401


def is_reachable() -> bool:
    """Return whether the hub answers at all, by one request without retries."""
    from huggingface_hub import constants, get_session

    def request() -> Any:
        return get_session().head(constants.ENDPOINT, timeout=HUB_SECONDS)

    unanswered: tuple[type[BaseException], ...] = (*connection_errors(), FutureTimeout)
    pool = ThreadPoolExecutor(1, thread_name_prefix="hub-check")
    try:
        pool.submit(request).result(timeout=HUB_SECONDS + 1)  # a name server that does not answer has no other limit
    except unanswered:
        return False
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
    return True


@contextmanager
def offline_unless_reachable() -> Iterator[None]:
    """Use the cache alone in the block, as with HF_HUB_OFFLINE, if the hub does not answer.

    Without it the hub's client sends each request six times in 23 seconds, and datasets 5 does not recognise the errors
    of its version 2, so that a cached dataset is not found either. Both read these constants at each request.
    """
    import datasets
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE or is_reachable():
        yield
        return
    before = datasets.config.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = datasets.config.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE = False, before


@contextmanager
def quiet_retries() -> Iterator[None]:
    """Hide the client's line for each of its retries: the error of the last one is raised, and tells it once."""
    logger = logging.getLogger("huggingface_hub.utils._http")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)
