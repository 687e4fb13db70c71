"""What the hub's client raises and logs when the hub cannot be reached.

huggingface_hub 0.x sends requests with requests, 1.x with httpx and 2.x with httpx2. An error of the connection itself
is one of that library's, which is the first base of the client's own `HfHubHTTPError`.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager


def unreachable_errors(*others: type[BaseException]) -> tuple[type[BaseException], ...]:
    """Return the exceptions of a hub that cannot be reached or answers with an error, and `others`."""
    from huggingface_hub.errors import HfHubHTTPError

    return (*connection_errors(), HfHubHTTPError, OSError, *others)


def connection_errors() -> tuple[type[BaseException], ...]:
    """Return the exceptions of a connection, and nothing that transformers also raises for a missing file."""
    from huggingface_hub.errors import HfHubHTTPError

    own = tuple(base for base in HfHubHTTPError.__bases__ if issubclass(base, BaseException) and base is not OSError)
    return (*own, ConnectionError, TimeoutError)


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
