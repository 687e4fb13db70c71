"""The game's own rules, applied to what other peers sent, before a later stage reads it."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable

from swarmgame.game.components import DataManager
from swarmgame.game.state import GameState, Group, PeerId
from swarmgame.user_code import describe, printable

logger = logging.getLogger(__name__)

ILLEGAL = "illegal-move"
OTHER_POSITION = "other-position"
"""An illegal move in our view of a group whose author had collected other contributions: perhaps legal in its own."""
PAST_STAGE = "past-stage"
"""A group of a later stage of an earlier round: what its author saw is gone, and no next stage reads it."""
_MOST_NAMED = 64
"""Most authors that are named in the log, each once: anybody may send illegal moves under many ids."""


class MoveCheck:
    """Finds the groups that `DataManager.check_move` refuses."""

    def __init__(self, data: DataManager) -> None:
        self._data = data
        self._named: set[PeerId] = set()

    def refused(
        self, as_author: GameState | None, author: PeerId, groups: Iterable[Group], certain: Collection[str]
    ) -> dict[str, str]:
        """Return why groups are refused, by question: mostly a rollout that breaks the rules.

        Args:
            as_author: what their author saw; None where that is gone: nothing may read the groups.
            certain: questions on which the author saw what we see, so that an illegal move is its fault.
        """
        if as_author is None:
            return {group.question_id: PAST_STAGE for group in groups}
        found = {}
        for group in groups:
            problem = self._problem(as_author, group)
            if problem is None:
                continue
            if group.question_id in certain:
                self._name(author, problem)
            found[group.question_id] = ILLEGAL if group.question_id in certain else OTHER_POSITION
        return found

    def _name(self, author: PeerId, problem: str) -> None:
        if author in self._named or len(self._named) >= _MOST_NAMED:
            return
        self._named.add(author)
        logger.warning(
            "peer %s made a move that the rules do not allow (%s): its group is dropped, as each such one of any peer "
            "is, and counted as %s",
            author,
            printable(problem, 200),
            ILLEGAL,
        )

    def _problem(self, as_author: GameState, group: Group) -> str | None:
        """Return the first broken rule, which may be an error of the author's code at an unforeseen text."""
        for rollout in group.rollouts:
            try:
                self._data.check_move(as_author, group.question_id, rollout)
            except ValueError as error:
                return str(error)
            except Exception as error:  # noqa: BLE001 — a refusal like any other, with the author's line
                return str(describe(error))
        return None
