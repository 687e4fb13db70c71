"""The log of a peer's diagnostics: each is emitted once, then counted."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

from swarmgame.game.components import Notice
from swarmgame.game.reward_checks import ScoringFailure
from swarmgame.observability.diagnostics.file_rules import OF_FILES
from swarmgame.observability.diagnostics.records import GameFacts, RoundRecord
from swarmgame.observability.diagnostics.rules import (
    NOTHING_LEARNED,
    SCORING_FAILED,
    WINDOW,
    Diagnostic,
    find_all,
    nothing_learned,
)
from swarmgame.observability.diagnostics.trainer_rules import OF_TRAINER

MAX_KEPT = 64
"""Different diagnostics of a peer; more than the rules can find."""


class DiagnosticsLog:
    """Applies the rules after each round.

    Args:
        emit: gets each diagnostic when it is found first; and again, with a higher count, when the count reaches 10,
            100, … and at the end. `Diagnostic.count` is 1 the first time, unless it counts calls.
    """

    def __init__(self, facts: GameFacts, emit: Callable[[Diagnostic, bool], None]) -> None:
        self._facts = facts
        self._emit = emit
        self._records: deque[RoundRecord] = deque(maxlen=WINDOW)
        self._found: dict[tuple[str, str], Diagnostic] = {}
        self._written: dict[tuple[str, str], int] = {}
        self._rounds = 0
        self._first_version: int | None = None

    @property
    def diagnostics(self) -> Sequence[Diagnostic]:
        """All so far, in the order in which they were found."""
        return tuple(self._found.values())

    def begin(self, policy_version: int, round: int = 0, notices: Iterable[Notice] = ()) -> None:
        """Record the policy's version before the first round, and what its trainer found when it was loaded."""
        self._first_version = policy_version
        self._add_notices(notices, round)

    def add_round(
        self, record: RoundRecord, failures: Iterable[ScoringFailure] = (), notices: Iterable[Notice] = ()
    ) -> None:
        """Apply the rules to one more round.

        Args:
            failures: the kinds of failed scoring calls so far, with their totals.
            notices: all that the trainer has found so far.
        """
        self._add_notices(notices, record.round)
        self._records.append(record)
        self._rounds += 1
        for diagnostic in find_all(list(self._records), self._facts):
            self._add(diagnostic)
        for failure in failures:
            self._add(_of_failure(failure, record.round), total=failure.count)

    def finish(self, notices: Iterable[Notice] = ()) -> None:
        """Apply the rules of the end, and emit the last counts.

        Args:
            notices: see `add_round`.
        """
        self._add_notices(notices, self._records[-1].round if self._records else 0)
        if self._records and self._first_version is not None:
            last = self._records[-1]
            text = nothing_learned(self._rounds, self._first_version, last.policy_version, self._facts)
            if text is not None:
                rule = NOTHING_LEARNED
                self._add(Diagnostic(rule.code, "", last.round, text, rule.cause, rule.cure))
        for key, found in self._found.items():
            if found.count != self._written[key]:
                self._write(found, first=False)

    def _add_notices(self, notices: Iterable[Notice], round: int) -> None:
        for notice in notices:
            rule = OF_TRAINER.get(notice.code) or OF_FILES.get(notice.code)
            cause, cure = (rule.cause, rule.cure) if rule is not None else ("", "")
            self._add(Diagnostic(notice.code, notice.text, round, notice.text, cause, cure), total=notice.count)

    def _add(self, diagnostic: Diagnostic, total: int | None = None) -> None:
        known = self._found.get(diagnostic.key)
        if known is None:
            if len(self._found) < MAX_KEPT:
                found = replace(diagnostic, count=total or 1)
                self._found[found.key] = found
                self._write(found, first=True)
            return
        found = replace(known, count=known.count + 1 if total is None else total)
        self._found[found.key] = found
        if found.count >= 10 * self._written[found.key]:
            self._write(found, first=False)

    def _write(self, diagnostic: Diagnostic, *, first: bool) -> None:
        self._written[diagnostic.key] = diagnostic.count
        self._emit(diagnostic, first)


def _of_failure(failure: ScoringFailure, number: int) -> Diagnostic:
    error = failure.error
    return Diagnostic(
        SCORING_FAILED,
        f"{error.kind} {error.where}".strip(),
        number,
        f"a call of the reward function failed and scored 0: {error}",
        cure=failure.cure,
        detail=error.trace,
    )
