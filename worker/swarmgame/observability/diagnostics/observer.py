"""The observer that finds diagnostics while the game runs, and shows them: in the log, the status and a file."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from pathlib import Path

from swarmgame.game.components import Notice, RewardManager, Trainer
from swarmgame.game.protocol import ClockError, Collected
from swarmgame.game.report import Observer, RoundReport
from swarmgame.game.state import GameState, Rewards, Round
from swarmgame.observability.diagnostics.files import append
from swarmgame.observability.diagnostics.log import DiagnosticsLog
from swarmgame.observability.diagnostics.records import GameFacts, record_of
from swarmgame.observability.diagnostics.rules import Diagnostic
from swarmgame.observability.metrics import PeerMetrics
from swarmgame.observability.status import PeerStatus

logger = logging.getLogger(__name__)
MAX_SHOWN = 16
"""Warnings in the status: the operator reads it."""


class DiagnosticsObserver(Observer):
    """Applies the rules after each round.

    Args:
        rewards, trainer: of the game; for failed calls, and for the policy's version.
        path: of `warnings.jsonl`.
        index: the peer's number in the run.
        notices: returns what the writers of files have given up.
    """

    def __init__(
        self,
        facts: GameFacts,
        rewards: RewardManager,
        trainer: Trainer,
        *,
        path: Path,
        index: int,
        status: PeerStatus,
        metrics: PeerMetrics,
        notices: Callable[[], Iterable[Notice]] = tuple,
    ) -> None:
        self._rewards = rewards
        self._trainer = trainer
        self._path = path
        self._index = index
        self._status = status
        self._metrics = metrics
        self._notices = notices
        self._clock_error: ClockError | None = None
        self._log = DiagnosticsLog(facts, self._show)

    def game_started(self, first_round: int, max_rounds: int) -> None:
        self._log.begin(self._trainer.policy_version, first_round, self._trainer.notices())

    def stage_closed(self, round: Round, stage: int, collected: Collected) -> None:
        self._clock_error = collected.clock_error

    def round_finished(self, report: RoundReport, state: GameState, rewards: Rewards) -> None:
        record = record_of(report, state, rewards, self._clock_error)
        self._log.add_round(record, self._rewards.failures(), [*self._trainer.notices(), *self._notices()])

    def game_finished(self, rounds: int) -> None:
        self._log.finish(self._notices())

    def _show(self, diagnostic: Diagnostic, first: bool) -> None:
        append(self._path, self._index, diagnostic)
        self._status.change(warnings=tuple(map(_shown, self._log.diagnostics[:MAX_SHOWN])))
        if first:
            self._metrics["warnings_total"].labels(diagnostic.code).inc()
            detail = f"\n{diagnostic.detail}" if diagnostic.detail else ""
            logger.warning("round %d: %s%s", diagnostic.round, diagnostic, detail, extra={"counted": True})
        elif diagnostic.count > 1:
            logger.info("%d times so far: %s", diagnostic.count, diagnostic.text)


def _shown(diagnostic: Diagnostic) -> dict[str, str | int]:
    return {
        "code": diagnostic.code,
        "subject": diagnostic.subject,
        "round": diagnostic.round,
        "count": diagnostic.count,
        "text": str(diagnostic),
    }
