"""How a peer of ours is connected in a benchmark: over hivemind, as in a game, or not at all."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from swarmgame.communication.protocol import Claim, ClosedBy, Collected, CollectPolicy, CommunicationManager, Member
from swarmgame.game.state import Contribution, PeerId


class Alone:
    """A swarm of one: the counterpart of GenRL's NullCommunicationBackend."""

    peer: PeerId = "alone"

    def join(self, *, expect: Sequence[PeerId] = (), at_least: int = 1, timeout_seconds: float = 120.0) -> None:
        """Nobody to meet."""

    def membership(self) -> tuple[Member, ...]:
        return (Member(self.peer, 0, 0),)

    def announce_progress(self, round: int, stage: int) -> None:
        """Nobody to tell."""

    def publish(self, contribution: Contribution, claims: Sequence[Claim] = ()) -> None:
        """Nobody to hear it."""

    def collect(self, round: int, stage: int, policy: CollectPolicy, *, stopped: Callable[[], bool] = lambda: False) -> Collected:
        return Collected(contributions=(), members=(self.peer,), missing=(), closed_by=ClosedBy.ALONE)

    def leave(self) -> None:
        """Nobody to say goodbye to."""


def alone() -> tuple[CommunicationManager, list[str]]:
    return Alone(), []
def connect(folder: Path, initial_peers: Sequence[str]) -> tuple[CommunicationManager, list[str]]:
    raise SystemExit
