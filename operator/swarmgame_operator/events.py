"""Events about games, which `kubectl describe` shows.

kopf posts them in the background, and logs one that it cannot post. The same event about the same game is not repeated
within ten minutes.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable
from contextvars import Context
from typing import Any

import kopf

from swarmgame_api.resource import GameResource
from swarmgame_common.logs import get_logger
from swarmgame_operator.api import GAME
from swarmgame_operator.plan import GameEvent

log = get_logger(__name__)

MAX_MESSAGE_BYTES = 950
"""Of the 1,024 bytes that the API allows; kopf counts characters."""
MAX_REMEMBERED = 20_000
REPEAT_SECONDS = 600.0


class Events:
    """Publishes events about games."""

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._published: OrderedDict[tuple[str, str, str, str], float] = OrderedDict()
        self.context: Context | None = None
        """A copy of a kopf handler's context: `kopf.event` finds its queue in it, and raises LookupError elsewhere."""

    def publish(self, game: GameResource, event: GameEvent) -> bool:
        """Hand the event to kopf, unless it was published recently. Return whether it was."""
        identity = (game.uid, event.type, event.reason, event.message)
        last = self._published.get(identity)
        if last is not None and self._clock() - last < REPEAT_SECONDS:
            return False
        if self.context is None:
            log.warning("event dropped", key=game.key, reason=event.reason, error="kopf has delivered no game yet")
            return False
        message = shorten(event.message, MAX_MESSAGE_BYTES)
        self.context.run(kopf.event, _body(game), type=event.type, reason=event.reason[:128], message=message)
        self._published[identity] = self._clock()
        self._published.move_to_end(identity)
        while len(self._published) > MAX_REMEMBERED:
            self._published.popitem(last=False)
        return True


def _body(game: GameResource) -> Any:
    metadata = {"namespace": game.namespace, "name": game.name, "uid": game.uid}
    return {"apiVersion": GAME.api, "kind": GAME.name, "metadata": metadata}


def shorten(text: str, most: int) -> str:
    """Return the text cut to a number of bytes, between characters."""
    raw = text.encode()
    return text if len(raw) <= most else raw[: most - 3].decode("utf-8", "ignore") + "…"
