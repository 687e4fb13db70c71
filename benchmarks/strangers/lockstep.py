"""A swarm of peers that take turns in one process: each runs the loop of a game in a thread of its own.

A stage closes when all have published. Only then the untrusted peers act: they see every honest contribution of the
stage and every policy, which no attacker of a real swarm does better. What all have sent is encoded and decoded as for
the wire. Invariant: one thread runs at a time, in the order in which the stage lets them go, so that a run repeats.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

from swarmgame.game.manager import GameManager
from swarmgame.game.protocol import Claim, ClosedBy, Collected, CollectPolicy, Member
from swarmgame.game.state import Contribution, PeerId
from swarmgame.swarm.codec import Limits, Malformed, decode, encode

Attack = Callable[[Mapping[PeerId, Contribution]], Sequence[Contribution]]
"""From the honest contributions of a stage to those of the untrusted peers."""


class LockstepSwarm:
    """The exchange of some honest peers.

    Args:
        names: of the honest peers.
        attack: makes what the untrusted peers send.
        generations: most rollouts of a group; 0: any number.
    """

    def __init__(self, names: Sequence[PeerId], attack: Attack, generations: int) -> None:
        self.names = tuple(names)
        self._attack = attack
        self._limits = Limits(rollouts_per_group=generations) if generations else Limits()
        self._published: dict[PeerId, Contribution] = {}
        self._received: tuple[Contribution, ...] = ()
        self._turn = threading.Lock()
        self._all = threading.Barrier(len(names), action=self._close)

    def play(self, managers: Mapping[PeerId, GameManager]) -> None:
        """Run the games of all peers to their end."""

        def run(name: PeerId) -> None:
            try:
                with self._turn:
                    managers[name].run(0)
            except BaseException:
                self._all.abort()
                raise

        with ThreadPoolExecutor(len(self.names)) as pool:
            for done in [pool.submit(run, name) for name in self.names]:
                done.result()

    def peer(self, name: PeerId) -> LockstepPeer:
        return LockstepPeer(self, name)

    def publish(self, contribution: Contribution) -> None:
        self._published[contribution.peer] = contribution

    def collect(self, peer: PeerId) -> tuple[Contribution, ...]:
        """Wait until all have published, and return what the others have sent."""
        self._turn.release()
        try:
            self._all.wait()
        finally:
            self._turn.acquire()
        return tuple(each for each in self._received if each.peer != peer)

    def _close(self) -> None:
        """Called by one thread while all others wait."""
        sent = [*self._published.values(), *self._attack(self._published)]
        received = [decoded for each in sent if (decoded := self._transmitted(each)) is not None]
        self._received = tuple(sorted(received, key=lambda each: (each.round, each.peer)))
        self._published = {}

    def _transmitted(self, contribution: Contribution) -> Contribution | None:
        try:
            return decode([shard.data for shard in encode(contribution, "influence")], self._limits)
        except Malformed:
            return None


class LockstepPeer:
    """One honest peer's `CommunicationManager`."""

    def __init__(self, swarm: LockstepSwarm, peer: PeerId) -> None:
        self._swarm = swarm
        self.peer = peer

    def join(self, *, expect: Sequence[PeerId] = (), min_replicas: int = 1, timeout_seconds: float = 120.0) -> None:
        """Do nothing: all are here."""

    def membership(self) -> tuple[Member, ...]:
        return tuple(Member(name, 0, 0) for name in sorted(self._swarm.names))

    def announce_progress(self, round: int, stage: int) -> None:
        """Do nothing: all are in one round."""

    def publish(self, contribution: Contribution, claims: Sequence[Claim] = ()) -> None:
        self._swarm.publish(contribution)

    def collect(
        self, round: int, stage: int, policy: CollectPolicy, *, stopped: Callable[[], bool] = lambda: False
    ) -> Collected:
        received = self._swarm.collect(self.peer)
        return Collected(received, tuple(sorted(self._swarm.names)), (), ClosedBy.QUORUM, {"accepted": len(received)})

    def leave(self) -> None:
        """Do nothing: nothing is open."""
