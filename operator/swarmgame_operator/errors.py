"""Errors of the operator, by their consequence: retried, reported to the user, or the end of the process.

Every retry has a delay, and every `Retry` and `Invalid` is counted by its reason.
"""

from __future__ import annotations


class OperatorError(Exception):
    """An error with a reason for programs and a message for people.

    Args:
        reason: one word in CamelCase.
        message: what failed, where, and what to do.
        status: of the API server's answer; 0 without an answer.
    """

    def __init__(self, reason: str, message: str = "", *, status: int = 0) -> None:
        super().__init__(f"{reason}: {message}" if message else reason)
        self.reason = reason
        self.message = message
        self.status = status


class Retry(OperatorError):
    """A problem that may pass: a conflict, an overloaded server, a broken connection.

    Args:
        after: seconds to wait; None: the key's back-off.
    """

    def __init__(self, after: float | None, reason: str, message: str = "", *, status: int = 0) -> None:
        super().__init__(reason, message, status=status)
        self.after = after


class AlreadyExists(Retry):
    """An object of that name exists, but the cache has not received it yet."""


class Gone(Retry):
    """A watch or a page of a list is too old to continue; start again."""


class Invalid(OperatorError):
    """The API server refuses the request, and would refuse it again."""


class NotFound(Invalid):
    """The object or its kind does not exist."""


class NameTaken(Invalid):
    """An object of the name exists and is not the game's: it is left alone until it is renamed or deleted."""


class LeadershipLost(Exception):
    """Another operator leads, or may: nothing may be written any more, and the process ends."""


class WatchLost(Exception):
    """kopf delivers no games: a new process finds the CRD and watches it."""
