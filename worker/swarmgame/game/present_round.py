"""The present round of a swarm, by what the members that count have contributed.

Only our own rounds end a game: a claim never does, and one that no contribution shows moves no peer.
"""

from __future__ import annotations

from collections.abc import Iterable

from swarmgame.game.protocol import Member
from swarmgame.game.state import PeerId


def present_round(members: Iterable[Member], peer: PeerId, *, to_enter: bool = False) -> int | None:
    """Return the latest round that at least half of the counted weight has reached; None where there is none.

    With equal weights this is the lower median of the others' rounds.

    Args:
        peer: ourselves, with the weight 1 and in a lower round.
        to_enter: return the round in which these peers are met.
    """
    rounds = [(m.next if to_enter else m.reached, m.weight) for m in members if m.peer != peer and m.weight > 0]
    half = (1 + sum(weight for _, weight in rounds)) / 2
    reached = 0.0
    for number, weight in sorted(rounds, reverse=True):
        reached += weight
        if reached >= half - 1e-9:
            return number
    return None
