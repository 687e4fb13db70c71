"""RoleManager: assigns roles from the sorted live membership, so that every peer computes the same assignment.

A role takes a count of peers, a share of them, or the rest. Invariant: each member has exactly one role; counts are
served before shares, and shares before the rest, for any size of the swarm.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from swarmgame.game.state import PeerId, Round
from swarmgame.seeds import derive_seed


@dataclass(frozen=True, slots=True)
class Role:
    """A role for `count` peers, or for a `share` (0..1) of them, or for the rest when neither is given."""

    name: str
    count: int | None = None
    share: float | None = None


class RoleManager:
    """Assigns roles by position in the sorted membership. Override `assign` for another rule."""

    def __init__(self, roles: Sequence[Role] = ()) -> None:
        self.roles = tuple(roles)

    def assign(self, members: Sequence[PeerId]) -> Mapping[PeerId, str]:
        """Return a role for every member; the empty string where the game has no roles."""
        ordered = sorted(members)
        names = [name for role, number in self._numbers(len(ordered)).items() for name in [role] * number]
        rest = next((role.name for role in self.roles if role.count is None and role.share is None), None)
        filler = rest if rest is not None else (self.roles[-1].name if self.roles else "")
        names += [filler] * (len(ordered) - len(names))
        return dict(zip(ordered, names, strict=True))

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
        return Round(
            number=number,
            seed=derive_seed(seed, "round", number),
            peer_seed=derive_seed(seed, "peer", peer, number),
            stages=stages,
            peer=peer,
            members=members,
            role=self.assign(members).get(peer, ""),
            evaluation=evaluation,
        )

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
