"""Errors of the operator, by what becomes of them: tried again, told to the user, or the end of the process.

Invariant: nothing is tried again without a delay, and every `Retry` and `Invalid` is counted by its reason.
"""

from __future__ import annotations


class OperatorError(Exception):
    """An error with a reason for programs and a message for people.

    Args:
        reason: one word in CamelCase.
        message: what, where, what to do.
        status: of the API server's answer; 0 where there was none.
    """

    def __init__(self, reason: str, message: str = "", *, status: int = 0) -> None:
        super().__init__(f"{reason}: {message}" if message else reason)
        self.reason = reason
        self.message = message
        self.status = status


class Retry(OperatorError):
    """It may pass by itself: a conflict, an overloaded server, a broken connection.

    Args:
        after: seconds; None: as long as the key's back-off says.
    """

    def __init__(self, after: float | None, reason: str, message: str = "", *, status: int = 0) -> None:
        super().__init__(reason, message, status=status)
        self.after = after


class AlreadyExists(Retry):
    """An object of that name is there, though our view of the cluster has none: the view will catch up."""


class Gone(Retry):
    """A watch or a page of a list is too old to go on; begin again."""


class Invalid(OperatorError):
    """Asked for something that the API server refuses, and would refuse again."""


class NotFound(Invalid):
    """There is no such object, or no such kind."""


class Lost(Exception):
    """Leadership went to somebody else: nothing may be written any more, and the process ends."""
