"""Events: tells what changed about a game where `kubectl describe` shows it. Once, and never at the cost of anything
else.

Invariant: an event that cannot be written is counted and dropped; the same news about the same game is not told twice
within ten minutes.
"""

from __future__ import annotations

import os
import time
from collections import OrderedDict
from collections.abc import Callable
from datetime import UTC, datetime
from uuid import uuid4

from swarmgame_api.resource import GameResource
from swarmgame_operator.api import EVENT, GAME, MANAGER, Api
from swarmgame_operator.errors import OperatorError
from swarmgame_operator.logs import log
from swarmgame_operator.plan import Event

LONGEST_NOTE = 950
"""Of the 1,024 bytes that the API allows."""
REMEMBERED = 20_000
QUIET_SECONDS = 600.0


class Events:
    """Writes events about games."""

    def __init__(self, api: Api, *, clock: Callable[[], float] = time.monotonic, instance: str = "") -> None:
        self._api, self._clock = api, clock
        self._instance = (instance or os.environ.get("HOSTNAME") or MANAGER)[:128]
        self._told: OrderedDict[tuple[str, str, str, str], float] = OrderedDict()

    async def tell(self, game: GameResource, event: Event) -> bool:
        """Writes the event, unless it was written a short while ago. Returns whether it was written."""
        news = (game.uid, event.type, event.reason, event.message)
        told = self._told.get(news)
        if told is not None and self._clock() - told < QUIET_SECONDS:
            return False
        try:
            await self._api.create(EVENT, game.namespace, self._body(game, event))
        except OperatorError as error:
            log.warning("event lost", key=game.key, reason=event.reason, error=error.reason)
            return False
        self._told[news] = self._clock()
        self._told.move_to_end(news)
        while len(self._told) > REMEMBERED:
            self._told.popitem(last=False)
        return True

    def _body(self, game: GameResource, event: Event) -> dict[str, object]:
        return {
            "apiVersion": EVENT.api,
            "kind": EVENT.name,
            "metadata": {"name": f"{game.name}.{uuid4().hex[:16]}", "namespace": game.namespace},
            "eventTime": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
            "reportingController": f"swarmgame.dev/{MANAGER}",
            "reportingInstance": self._instance,
            "action": "Reconcile",
            "reason": event.reason[:128],
            "type": event.type,
            "note": shorten(event.message, LONGEST_NOTE),
            "regarding": {
                "apiVersion": GAME.api,
                "kind": GAME.name,
                "namespace": game.namespace,
                "name": game.name,
                "uid": game.uid,
            },
        }


def shorten(text: str, most: int) -> str:
    """The text in at most so many bytes, cut between letters."""
    raw = text.encode()
    return text if len(raw) <= most else raw[: most - 3].decode("utf-8", "ignore") + "…"
