"""The torch.distributed backend: a fixed group of peers, all in step.

Every stage is an exchange in which each peer sends its contribution to all others (`rank_group`). After a restart,
peers may be a round apart: the lowest (round, stage) is exchanged first, and peers that are ahead send their
contribution to it again. A peer that is gone, restarted or late ends the others with `Temporary`: all start again and
resume from their checkpoints.

Nothing is encrypted or authenticated on the way; contributions are signed and checked as over libp2p.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import median_low
from typing import Any

from swarmgame.errors import Refused, Temporary
from swarmgame.game.protocol import Claim, ClosedBy, Collected, CollectPolicy, Member, Origin
from swarmgame.game.sources import differences, forbidden
from swarmgame.game.state import Contribution, PeerId
from swarmgame.swarm.identity import Identity, verify
from swarmgame.swarm.messages import make_outbound
from swarmgame.swarm.settings import SwarmSettings
from swarmgame.swarm.transport import Traffic
from swarmgame.swarm.transports.payload import pack_payload, read_payloads
from swarmgame.swarm.transports.rank_group import (
    RESUME,
    TRANSFER_SECONDS,
    Exchanged,
    Position,
    RankAddress,
    RankGroup,
    first_line,
)

logger = logging.getLogger(__name__)


class TorchDistributedCommunication:
    """One peer of a fixed group; see `CommunicationManager`.

    Args:
        run: name of the run.
        identity: key file; created if there is none.
        address: our rank, and where the group meets.
        settings: how the peer behaves; there are no heartbeats.

    Raises:
        BadData: the key file is invalid.
    """

    addresses: tuple[str, ...] = ()
    """Always empty: no peer from outside can join."""
    failure = ""
    """Always empty: what fails ends the exchange that uses it."""

    def __init__(
        self, run: str, identity: Path, address: RankAddress, *, settings: SwarmSettings | None = None
    ) -> None:
        self.run = run
        self.settings = settings or SwarmSettings()
        self._key = Identity.load_or_create(identity)
        self._group = RankGroup(run, address, self._key.peer, self.settings.sources)
        self._position: Position = (0, 0)
        self._roots: dict[Position, bytes] = {}
        self._payloads: dict[Position, bytes] = {}
        self._outcomes: Counter[str] = Counter()
        self._counted = (0, 0)
        self._deadline_seconds = TRANSFER_SECONDS
        self._stopped: Callable[[], bool] = lambda: False

    @property
    def peer(self) -> PeerId:
        return self._key.peer

    @property
    def traffic(self) -> Traffic:
        return self._group.traffic

    def start(self) -> None:
        """Do nothing: the peers meet when they join, and no other peer can reach them."""

    def join(self, *, expect: Sequence[PeerId] = (), min_replicas: int = 1, timeout_seconds: float = 120.0) -> None:
        """See `CommunicationManager.join`. Wait for all peers, whatever `min_replicas` is.

        Raises:
            Refused: another peer plays another game.
        """
        try:
            self._group.join(timeout_seconds)
            self._check_sources()
        except BaseException:
            self.leave()
            raise

    def _check_sources(self) -> None:
        """Compare our game with those of the other peers: the group is closed, so that one other game ends it."""
        for rank in self._group.others:
            found = differences(self.settings.sources, self._group.sources_of(rank))
            if hard := forbidden(found):
                cures = "; ".join(each.cure for each in hard)
                raise Refused(
                    f"peer {rank} of run {self.run!r} plays another game than peer {self._group.address.rank}: "
                    f"{'; '.join(map(str, hard))}. What to do: give all peers the same ({cures})"
                )
            for each in found:
                logger.warning("peer %d and this one differ: %s; %s", rank, each, each.cure)

    def state_dict(self) -> Mapping[str, Any]:
        """Return nothing: all peers count."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Do nothing."""

    def leave(self) -> None:
        """See `CommunicationManager.leave`."""
        self._group.leave()

    def membership(self) -> tuple[Member, ...]:
        """See `CommunicationManager.membership`. If a peer that is behind collects, take part in its exchange.

        Raises:
            Temporary: a peer that is a round behind has left, or this peer has left.
        """
        group = self._joined()
        members = [Member(self.peer, *self._position)]
        try:
            for rank in group.others:
                position = group.position(rank)
                if group.has_left(rank):
                    if position[0] < self._position[0]:
                        group.raise_left(rank)
                elif self.settings.admission(group.peers[rank]):
                    members.append(Member(group.peers[rank], *position))
            if group.waits_behind(self._position):
                self._exchange(self._stopped)
        except RuntimeError as error:  # the store is gone; `collect` raises if there is more to do
            logger.debug("the other members are unknown: %s", first_line(error))
            del members[1:]
        return tuple(sorted(members, key=lambda member: member.peer))

    def announce_progress(self, round: int, stage: int) -> None:
        """See `CommunicationManager.announce_progress`."""
        group = self._joined()
        if self._position == (round, stage):
            return
        self._position = (round, stage)
        for position in [each for each in self._payloads if each[0] < round - self.settings.keep_rounds]:
            del self._payloads[position], self._roots[position]
        with contextlib.suppress(RuntimeError):
            group.set_position(self._position)

    def publish(self, contribution: Contribution, claims: Sequence[Claim] = ()) -> None:
        """See `CommunicationManager.publish`.

        Raises:
            ValueError: it is another peer's, its parts do not agree, or another one was published in that stage.
        """
        self._joined()
        if contribution.peer != self.peer:
            raise ValueError(f"{self.peer} cannot publish a contribution of {contribution.peer}")
        outbound = make_outbound(
            contribution,
            claims,
            run=self.run,
            sign=self._key.sign,
            now=time.time(),
            shard_bytes=self.settings.shard_bytes,
            limits=self.settings.limits,
        )
        position, root = (contribution.round, contribution.stage), outbound.announcement.root
        if self._roots.setdefault(position, root) != root:
            raise ValueError(f"another contribution was published already in round {position[0]}, stage {position[1]}")
        self._payloads[position] = pack_payload(outbound)

    def collect(
        self, round: int, stage: int, policy: CollectPolicy, *, stopped: Callable[[], bool] = lambda: False
    ) -> Collected:
        """See `CommunicationManager.collect`. Wait for all peers, whatever the quorum is.

        Raises:
            Temporary: a peer has left, was started again, or did not come within the deadline.
        """
        began = time.monotonic()
        group = self._joined()
        self.announce_progress(round, stage)
        self._deadline_seconds, self._stopped = policy.deadline_seconds, stopped
        # Peers that are behind come first, each exchange with a deadline of its own.
        exchanged = self._exchange(stopped)
        while exchanged is not None and exchanged.position < self._position:
            exchanged = self._exchange(stopped)
        admitted = {rank: group.peers[rank] for rank in group.others if self.settings.admission(group.peers[rank])}
        contributions: dict[PeerId, tuple[Contribution, Origin] | None] = {}
        lagging = False
        if exchanged is not None:
            refused = exchanged.payloads.keys() & set(group.others) - admitted.keys()
            self._outcomes.update({"not-admitted": len(refused), "too-large": len(exchanged.too_large & set(admitted))})
            contributions = read_payloads(
                {peer: exchanged.payloads[rank] for rank, peer in admitted.items() if rank in exchanged.payloads},
                self._position,
                policy,
                run=self.run,
                verify=verify,
                limits=self.settings.limits,
                outcomes=self._outcomes,
            )
            rounds = [exchanged.positions[rank][0] for rank in admitted]
            lagging = bool(rounds) and median_low(rounds) > round + policy.max_lag
        missing = sorted(set(admitted.values()) - contributions.keys())
        closed_by = ClosedBy.QUORUM if not missing else ClosedBy.LAGGING if lagging else ClosedBy.DEADLINE
        outcomes, self._outcomes = self._outcomes, Counter()
        received = [each for _, each in sorted(contributions.items()) if each is not None]
        before, self._counted = self._counted, (self.traffic.bytes_sent, self.traffic.bytes_received)
        return Collected(
            contributions=tuple(contribution for contribution, _ in received),
            members=tuple(sorted([self.peer, *admitted.values()])),
            missing=tuple(missing),
            closed_by=closed_by if admitted else ClosedBy.ISOLATED,
            outcomes={reason: count for reason, count in outcomes.items() if count},
            seconds=time.monotonic() - began,
            bytes_sent=self._counted[0] - before[0],
            bytes_received=self._counted[1] - before[1],
            origins=tuple(origin for _, origin in received),
        )

    def _exchange(self, stopped: Callable[[], bool]) -> Exchanged | None:
        try:
            return self._joined().exchange(self._position, self._payloads, self._deadline_seconds, stopped)
        except RuntimeError as error:
            if stopped():  # so are the others, and one of them was first
                return None
            raise Temporary(f"an exchange with the other peers failed ({first_line(error)}); {RESUME}") from error

    def _joined(self) -> RankGroup:
        if not self._group.peers:
            raise Temporary("this peer has left the swarm")
        return self._group
