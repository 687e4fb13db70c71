"""A trial: a call is made in a process that others share, and is given up before it evaluates anything.

Most scorers only read an answer: they compare, parse and count. A fork costs more than that. Whatever runs code that an
answer holds, or reaches beyond the interpreter, raises an event of Python's audit hooks first (`compile`, `exec`,
`import`, `open`, `pickle.find_class`, …). During a trial each such event ends the call; a few that do no harm are let
through. Invariant: no code of an answer has run when a call is given up.

Source: PEP 578.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any

_HARMLESS = frozenset({"array.__new__", "builtins.id", "sys._getframe", "sys._getframemodulename"})


class GivenUp(BaseException):
    """The call would have done more than read. Not an `Exception`, which scorers swallow."""


class Trial:
    """Makes calls under an audit hook, which stays installed, and does nothing between calls."""

    def __init__(self) -> None:
        self._on = False
        self._given_up = False
        self._installed = False

    def call(self, make: Callable[[], Any]) -> Any:
        """Return what a call returns; None where it was given up.

        Args:
            make: makes the call, and returns something that is not None.
        """
        if not self._installed:
            sys.addaudithook(self._audit)  # cannot be removed; a fork inherits it
            self._installed = True
        self._given_up, self._on = False, True
        try:
            result = make()
        except GivenUp:
            result = None
        finally:
            self._on = False
        return None if self._given_up else result

    def _audit(self, event: str, _: Sequence[Any]) -> None:
        if self._on and event not in _HARMLESS:
            self._given_up = True
            raise GivenUp(event)
