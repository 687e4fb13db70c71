"""The prompts that the author of a contribution should have made, by this peer's own data."""

from __future__ import annotations

import logging
from collections.abc import Mapping

from swarmgame.game.components import DataManager
from swarmgame.game.environment_data import EnvironmentData
from swarmgame.game.state import Contribution, GameState, Group, PeerId, Prompt
from swarmgame.user_code import describe

logger = logging.getLogger(__name__)

PROMPT_FAILED = "prompt-failed"
_MOST_NAMED = 64
"""Most authors that are named in the log, each once: anybody may join under many ids."""


class AuthorPrompts:
    """Makes the prompts of other peers."""

    def __init__(self, data: DataManager) -> None:
        self._data = data
        self._same_for_all = _is_built_in(data)
        self._named: set[PeerId] = set()

    def expected(
        self, as_author: GameState | None, contribution: Contribution, own: Mapping[str, Prompt]
    ) -> Mapping[str, Prompt] | None:
        """Return the prompts by question, empty where they are not known; None where the game's code failed.

        What the state of another peer contains follows from what that peer sent, so a failure of the code there ends
        nothing. Where prompts follow from the questions, equal messages are our own prompts, which need not be made
        again.

        Args:
            as_author: what the author saw; None where that is not known.
            own: our own prompts of this stage, by question.
        """
        if as_author is None or not contribution.groups:
            return {}
        if self._same_for_all and all(
            _is_prompt_of(own.get(group.question_id), group) for group in contribution.groups
        ):
            return own
        try:
            return {prompt.question_id: prompt for prompt in self._data.stage_inputs(as_author, contribution.stage)}
        except Exception as error:  # noqa: BLE001 — the game's code, at a state that another peer's bytes made
            self._name(contribution, error)
            return None

    def _name(self, contribution: Contribution, error: Exception) -> None:
        author = contribution.peer
        if author in self._named or len(self._named) >= _MOST_NAMED:
            return
        self._named.add(author)
        logger.warning(
            "%s.stage_inputs failed in stage %d as peer %s (%s): its groups are dropped, as those of any peer are for "
            "which it fails, and counted as %s. It should make no prompt where its author is no member, has no role, "
            "or sent nothing in a stage before",
            type(self._data).__name__,
            contribution.stage,
            author,
            describe(error),
            PROMPT_FAILED,
        )


def _is_built_in(data: DataManager) -> bool:
    """Return whether the prompts are made by this package, which makes the same of a question for all peers."""
    inner = data.inner if isinstance(data, EnvironmentData) else data
    return type(inner).stage_inputs.__module__.partition(".")[0] == "swarmgame"


def _is_prompt_of(ours: Prompt | None, group: Group) -> bool:
    """Return whether a prompt of ours, which is its messages, is that of a group."""
    return ours is not None and ours.payload is None and bool(ours.messages) and ours.messages == group.prompt.messages
