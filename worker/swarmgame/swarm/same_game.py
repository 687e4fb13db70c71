"""Whether other peers play the same game, by the sources in their heartbeats.

A peer with other rounds, data, code or rewards is no member: nothing of it could be used. It is named once in the log.
A peer that joins and finds only such peers is refused, because it is the one that differs; one peer that agrees is
enough to stay, so that a single hostile peer cannot keep others out of a swarm. Peers of an earlier release do not
announce their sources, and count as members.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass

from swarmgame.game.sources import Difference, Sources, differences, forbidden
from swarmgame.game.state import PeerId
from swarmgame.swarm.messages import Heartbeat

logger = logging.getLogger(__name__)

MAX_DIFFERING = 4096
"""Peers that are kept; the directory of an open swarm may hold any number of invented ones."""
_NAMED = 8
"""Peers that the log names, of each kind."""


@dataclass(slots=True)
class _Differing:
    found: tuple[Difference, ...]
    first_seen: float
    until: float


class SameGame:
    """Compares the sources of other peers with our own."""

    def __init__(self, run: str, ours: Sources) -> None:
        self.run, self.ours = run, ours
        self._differing: dict[PeerId, _Differing] = {}
        self._named: set[PeerId] = set()
        self._models: set[str] = set()

    def admits(self, heartbeat: Heartbeat, now: float) -> bool:
        """Return whether the sender plays the same game, as far as it can be known."""
        peer, found = heartbeat.peer, differences(self.ours, heartbeat.sources)
        hard = forbidden(found)
        if not hard:
            self._differing.pop(peer, None)
            self._name_model(peer, found)
            return True
        known = self._differing.get(peer)
        if heartbeat.leaving or (known is None and len(self._differing) >= MAX_DIFFERING):
            self._differing.pop(peer, None)
            return False
        first = known.first_seen if known is not None else now
        self._differing[peer] = _Differing(hard, first, heartbeat.expires)
        if peer not in self._named and len(self._named) < _NAMED:
            self._named.add(peer)
            text = "; ".join(f"its {each.name}: theirs {each.theirs}, ours {each.ours}" for each in hard)
            logger.warning("peer …%s plays another game, and is no member of this swarm (%s)", peer[-6:], text)
        return False

    def excludes(self, peer: PeerId) -> bool:
        """Return whether the last heartbeat of a peer was of another game."""
        return peer in self._differing

    def peers(self, now: float) -> frozenset[PeerId]:
        """Return the peers of another game whose heartbeat has not expired."""
        return frozenset(peer for peer, each in self._differing.items() if each.until > now)

    def first_seen(self, answered: Collection[PeerId]) -> float | None:
        """Return when the first of these peers was seen, of those that play another game; None without one."""
        return min((each.first_seen for peer, each in self._differing.items() if peer in answered), default=None)

    def refusal(self, answered: Collection[PeerId]) -> str:
        """Return why a peer to which only peers of another game have answered cannot take part, as sentences."""
        live = [each.found for peer, each in self._differing.items() if peer in answered]
        (common, count), *_ = Counter(live).most_common(1)
        others = "its only member" if len(live) == 1 else f"all {len(live)} members that answered"
        cures = "; ".join(each.cure for each in common)
        return (
            f"the swarm of run {self.run!r} plays another game than this peer, so neither could use what the other "
            f"publishes: {'; '.join(map(str, common))} (of {others if count == len(live) else f'{count} members'}). "
            f"What to do: {cures}. `swarmgame env check` shows what yours are made of, and /status of a member theirs"
        )

    def forget(self, now: float) -> None:
        """Drop peers that are gone."""
        self._differing = {peer: each for peer, each in self._differing.items() if each.until > now}

    def _name_model(self, peer: PeerId, found: tuple[Difference, ...]) -> None:
        """Log once for each other model that it is not ours: this is allowed, but may not be meant."""
        for each in found:
            if each.theirs not in self._models and len(self._models) < _NAMED:
                self._models.add(each.theirs)
                logger.warning(
                    "peer …%s has another base %s than this one (theirs %s, ours %s). Peers may train different "
                    "models; %s",
                    peer[-6:],
                    each.name,
                    each.theirs,
                    each.ours,
                    each.cure,
                )
