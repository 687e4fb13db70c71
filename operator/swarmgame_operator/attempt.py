"""One reconciliation's attempt to write, and what is remembered of a game between two of them.

The memo holds only what can be found out again: an operator that is killed at any point loses nothing by it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from swarmgame_api.resource import GameResource
from swarmgame_common.logs import get_logger
from swarmgame_operator.errors import Invalid, NameTaken, OperatorError, Retry
from swarmgame_operator.plan import References
from swarmgame_operator.plan.status_changes import COUNTS_SECONDS, only_counts
from swarmgame_operator.secrets import NewKeys, ReferencedObjects
from swarmgame_operator.snapshot import Diagnosis, DryRunFacts, Refusal

log = get_logger(__name__)

LONGEST_PAUSE = 60.0
"""Seconds between attempts at what is refused: a quota that was raised sends no event."""
DIAGNOSIS_SECONDS = 900.0
NO_OBJECTS = ReferencedObjects({}, {}, frozenset())


@dataclass(slots=True)
class ReconcileMemo:
    """Answers about a game that are kept between reconciliations.

    Args:
        bootnode: version of the bootnode's key Secret, and its peer id.
        peers: version of the peers' key Secret and the number of peers, and their peer ids.
        made: by name, key Secrets that were created since the ids were last asked for.
        refusals: by kind and name, what the last attempts could not write.
        diagnoses: by kind and name, what the events of unstarted objects say.
        required, found: what the game refers to, and what of it existed at the time `read`.
        plan_error: why the last plan failed; empty if it did not.
        counts_changed: when counts were first seen that the status does not have yet, by the loop's clock; None if it
            has all of them.
    """

    uid: str
    dry_run: DryRunFacts | None = None
    refusals: dict[tuple[str, str], Refusal] = field(default_factory=dict)
    diagnoses: dict[tuple[str, str], Diagnosis] = field(default_factory=dict)
    bootnode: tuple[str, str] = ("", "")
    peers: tuple[tuple[str, int], tuple[str, ...]] = (("", 0), ())
    made: dict[str, NewKeys] = field(default_factory=dict)
    required: References | None = None
    found: ReferencedObjects = NO_OBJECTS
    read: float = 0.0
    plan_error: str = ""
    counts_changed: float | None = None

    def wait_of_counts(self, before: Mapping[str, Any], after: Mapping[str, Any]) -> float:
        """Return the seconds that the change from one status to another may wait for others; 0 if it is due."""
        if before == after or not only_counts(before, after):
            return 0.0
        now = asyncio.get_running_loop().time()
        if self.counts_changed is None:
            self.counts_changed = now
        left = self.counts_changed + COUNTS_SECONDS - now
        return left if left > 0.01 else 0.0  # a timer may fire a little early

    def forget_diagnoses(self, now: datetime) -> None:
        """Forget old diagnoses: an object that still does not start has had a newer one."""
        old = [place for place, each in self.diagnoses.items() if (now - each.read).total_seconds() > DIAGNOSIS_SECONDS]
        for place in old:
            del self.diagnoses[place]

    @property
    def lacks_objects(self) -> bool:
        """Whether an object that the game refers to is missing, or one of its keys."""
        if self.required is None:
            return False
        pairs = ((self.required.secrets, self.found.secrets), (self.required.config_maps, self.found.config_maps))
        return not self.required.claims <= self.found.claims or any(
            name not in found or not keys <= found[name] for required, found in pairs for name, keys in required.items()
        )


@dataclass(slots=True)
class Attempt:
    """The writes of one reconciliation, and which of them failed.

    Args:
        game: with its status as it was last written.
        written: that status as a document.
        deleted: what was deleted already.
        errors: of this reconciliation.
        tried: what it tried to write.
        holds: new pods have to wait for what failed.
        wait: seconds until the events may be read that the plan asks for; None: they were read.
    """

    game: GameResource
    memo: ReconcileMemo
    now: datetime
    written: Mapping[str, Any]
    deleted: set[tuple[str, str]] = field(default_factory=set)
    errors: list[OperatorError] = field(default_factory=list)
    tried: set[tuple[str, str]] = field(default_factory=set)
    holds: bool = False
    wait: float | None = None

    async def make(self, kind: str, name: str, request: Awaitable[None], holds: bool = True) -> None:
        """Make a request; if it fails, remember why, so that the others are still made and the status says it.

        Args:
            holds: new pods need what it writes.
        """
        place = (kind, name)
        self.tried.add(place)
        try:
            await request
        except OperatorError as error:
            known = self.memo.refusals.get(place)
            since = known.since if known is not None else self.now
            taken = isinstance(error, NameTaken)
            self.memo.refusals[place] = Refusal(kind, name, error.status, error.message, since, taken)
            self.errors.append(error)
            self.holds |= holds
            level = log.error if isinstance(error, Invalid) else log.info
            level("refused", key=self.game.key, kind=kind, name=name, reason=error.reason, message=error.message)
        else:
            self.memo.refusals.pop(place, None)

    def forget_others(self) -> None:
        """Forget refusals of what the plan no longer writes; after an error not all of it was tried."""
        if not self.errors:
            for place in self.memo.refusals.keys() - self.tried:
                del self.memo.refusals[place]

    @property
    def pause(self) -> float | None:
        """Seconds until the next attempt: as the API server asks, or longer the longer it has been refused."""
        asked = next((each.after for each in self.errors if isinstance(each, Retry) and each.after is not None), None)
        since = min((each.since for each in self.memo.refusals.values()), default=self.now)
        lasted = (self.now - since).total_seconds()
        return asked if asked is not None or lasted < 1 else min(LONGEST_PAUSE, lasted)
