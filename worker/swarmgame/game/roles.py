"""RoleManager: assigns roles to the live members at the beginning of each round. Every peer computes the same.

A role takes a count of peers, a share of them, or the rest. Invariant: each member has exactly one role; counts are
served before shares, and shares before the rest, for any size of the swarm.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from swarmgame.errors import BadGame
from swarmgame.game.components import Component, ComponentContext
from swarmgame.game.explained import explained
from swarmgame.game.state import PeerId, Round
from swarmgame.seeds import derive_seed
from swarmgame.user_code import kind_of


@dataclass(frozen=True, slots=True)
class Role:
    """A role for `count` peers, or for a `share` (0..1) of them, or for the rest when neither is given."""

    name: str
    count: int | None = None
    share: float | None = None


class RoleManager(Component):
    """Assigns roles by position in the sorted membership, alike in each round. Override `assign` for another rule."""

    def __init__(self, roles: Sequence[Role] = (), config: Any = None, context: ComponentContext | None = None) -> None:
        super().__init__(config, context or ComponentContext())
        self.roles = tuple(roles)

    def assign(self, members: Sequence[PeerId], number: int = 0, seed: int = 0) -> Mapping[PeerId, str]:
        """Return a role for every member; the empty string where the game has no roles.

        All peers must get the same from the same members: use no clock, and no random number but of `seed`.

        Args:
            members: of the round.
            number: of the round, from 0.
            seed: of the round, the same for all peers.
        """
        ordered = sorted(members)
        return dict(zip(ordered, self._names(len(ordered)), strict=True))

    def _names(self, size: int) -> list[str]:
        """Return the role of each position."""
        names = [name for role, number in self._numbers(size).items() for name in [role] * number]
        rest = next((role.name for role in self.roles if role.count is None and role.share is None), None)
        filler = rest if rest is not None else (self.roles[-1].name if self.roles else "")
        return names + [filler] * (size - len(names))

    def round(
        self,
        seed: int,
        stages: int,
        peer: PeerId,
        number: int,
        members: tuple[PeerId, ...],
        *,
        evaluation: bool = False,
    ) -> Round:
        """Return a round as a peer sees it: a function of the game's seed, the peer and the live members."""
        of_round = derive_seed(seed, "round", number)
        with explained(type(self), "assign"):
            roles = self._checked(self.assign(members, number, of_round), members)
        return Round(
            number=number,
            seed=of_round,
            peer_seed=derive_seed(seed, "peer", peer, number),
            stages=stages,
            peer=peer,
            members=members,
            role=roles.get(peer, ""),
            roles=roles,
            evaluation=evaluation,
        )

    def _checked(self, roles: object, members: Sequence[PeerId]) -> Mapping[PeerId, str]:
        """Return an assignment, if it is one.

        Raises:
            BadGame: it is not; says what is wrong with it.
        """
        name = f"{type(self).__name__}.assign"
        if not isinstance(roles, Mapping):
            raise BadGame(f"{name} returned {kind_of(roles)}; expected a mapping of peers to names of roles")
        known = {role.name for role in self.roles}
        for peer in members:
            role = roles.get(peer)
            if not isinstance(role, str):
                raise BadGame(f"{name} returned {kind_of(role)} for member {peer}; expected a name for each member")
            if known and role not in known:
                raise BadGame(f"{name} returned the role {role!r}; expected one of spec.game.roles: {sorted(known)}")
        return {peer: roles[peer] for peer in sorted(members)}

    def without_taker(self, round: Round) -> tuple[str, ...]:
        """Return the roles that no member of a round has."""
        taken = set(round.roles.values())
        return tuple(role.name for role in self.roles if role.name not in taken)

    def _numbers(self, size: int) -> dict[str, int]:
        left = size
        numbers: dict[str, int] = {}
        for role in self.roles:
            if role.count is not None:
                numbers[role.name] = min(role.count, left)
                left -= numbers[role.name]
        for role in self.roles:
            if role.share is not None:
                # A share rounds to the nearest peer, and is at least one peer while any are left.
                numbers[role.name] = min(max(round(role.share * size), 1), left)
                left -= numbers[role.name]
        return {role.name: numbers[role.name] for role in self.roles if role.name in numbers}


class Rotating(RoleManager):
    """Assigns roles by position, moved on by one in each round: every member has every role in turn."""

    def assign(self, members: Sequence[PeerId], number: int = 0, seed: int = 0) -> Mapping[PeerId, str]:
        ordered = sorted(members)
        names = self._names(len(ordered))
        return {peer: names[(at + number) % len(names)] for at, peer in enumerate(ordered)}


class Drawn(RoleManager):
    """Draws the roles anew in each round, with the counts and shares of the manifest."""

    def assign(self, members: Sequence[PeerId], number: int = 0, seed: int = 0) -> Mapping[PeerId, str]:
        ordered = sorted(members, key=lambda peer: (derive_seed(seed, "role", peer), peer))
        return dict(zip(ordered, self._names(len(ordered)), strict=True))
