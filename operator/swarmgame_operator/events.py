"""Events about games, which `kubectl describe` shows.

An event that cannot be written is logged and dropped. The same event about the same game is not repeated within ten
minutes.
"""

from __future__ import annotations

import os
import time
from collections import OrderedDict
from collections.abc import Callable
from datetime import UTC, datetime
from uuid import uuid4

from swarmgame_api.resource import GameResource
from swarmgame_common.logs import get_logger
from swarmgame_operator.api import EVENT, GAME, MANAGER, Api
from swarmgame_operator.errors import OperatorError
from swarmgame_operator.plan import GameEvent

log = get_logger(__name__)

MAX_NOTE_BYTES = 950
"""Of the 1,024 bytes that the API allows."""
MAX_REMEMBERED = 20_000
REPEAT_SECONDS = 600.0


class Events:
    """Publishes events about games."""

    def __init__(self, api: Api, *, clock: Callable[[], float] = time.monotonic, instance: str = "") -> None:
        self._api, self._clock = api, clock
        self._instance = (instance or os.environ.get("HOSTNAME") or MANAGER)[:128]
        self._published: OrderedDict[tuple[str, str, str, str], float] = OrderedDict()

    async def publish(self, game: GameResource, event: GameEvent) -> bool:
        """Write the event, unless it was written recently. Return whether it was written."""
        identity = (game.uid, event.type, event.reason, event.message)
        last = self._published.get(identity)
        if last is not None and self._clock() - last < REPEAT_SECONDS:
            return False
        try:
            await self._api.create(EVENT, game.namespace, self._body(game, event))
        except OperatorError as error:
            log.warning("event dropped", key=game.key, reason=event.reason, error=error.reason)
            return False
        self._published[identity] = self._clock()
        self._published.move_to_end(identity)
        while len(self._published) > MAX_REMEMBERED:
            self._published.popitem(last=False)
        return True

    def _body(self, game: GameResource, event: GameEvent) -> dict[str, object]:
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
            "note": shorten(event.message, MAX_NOTE_BYTES),
            "regarding": {
                "apiVersion": GAME.api,
                "kind": GAME.name,
                "namespace": game.namespace,
                "name": game.name,
                "uid": game.uid,
            },
        }


def shorten(text: str, most: int) -> str:
    """Return the text cut to a number of bytes, between characters."""
    raw = text.encode()
    return text if len(raw) <= most else raw[: most - 3].decode("utf-8", "ignore") + "…"
