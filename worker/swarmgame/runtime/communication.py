"""The communication of one peer's process: the backend of its manifest, kept for restarts, shared between ranks.

Rank 0 holds the backend, and the other ranks get its results in the wire format of rollouts; nothing is pickled. What
was published in the last rounds is part of the checkpoint, and is published again after a restart, because a slower
peer may still need it: equal bytes and equal hashes, so it counts as the same contribution. Invariant: after each call
every rank holds the same result.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import astuple, replace
from typing import Any, Protocol, TypeVar

import msgpack

from swarmgame.errors import BadUsage
from swarmgame.game.protocol import Claim, ClockError, ClosedBy, Collected, CollectPolicy, CommunicationManager, Member
from swarmgame.game.ranks import Ranks
from swarmgame.game.remote_work import RemoteWork
from swarmgame.game.sources import Sources
from swarmgame.game.state import Contribution, PeerId
from swarmgame.runtime.admission import Admission
from swarmgame.runtime.options import PeerOptions, run_id
from swarmgame.swarm import codec
from swarmgame.swarm.settings import SwarmSettings
from swarmgame_api.manifest import SwarmGame
from swarmgame_common.sockets import split_host_and_port

T = TypeVar("T")


class Backend(CommunicationManager, Protocol):
    """A communication backend, which also knows the addresses at which other peers reach it."""

    def start(self) -> None:
        """Listen, before joining, so that the addresses are known while this peer waits for others."""
        ...

    def state_dict(self) -> Mapping[str, Any]:
        """Return what a checkpoint keeps of it."""
        ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back what a checkpoint kept, before joining."""
        ...

    @property
    def addresses(self) -> tuple[str, ...]: ...

    @property
    def failure(self) -> str:
        """Why this process has to end, as a sentence; empty while it can go on. Does not block."""
        ...


def kept_rounds(manifest: SwarmGame) -> int:
    """Return how many rounds back other peers may still need this peer's contributions."""
    return manifest.spec.game.sharing.max_staleness_rounds + 1


def make_backend(
    manifest: SwarmGame,
    options: PeerOptions,
    *,
    bootnodes: Sequence[str] = (),
    admission: Admission | None = None,
    sources: Sources | None = None,
    rollout_tokens: int = 0,
    rollouts_per_group: int = 0,
) -> Backend:
    """Return the backend of `spec.communication`, not yet joined.

    Args:
        admission: which peers may take part, and which count from the start; None: all, and none.
        sources: of the game, which other peers compare with theirs.
        rollout_tokens: most ids of a rollout; 0: not known.
        rollouts_per_group: most of them that a group of another peer may have; 0: not known.

    Raises:
        BadUsage: with TorchDistributed: no rendezvous, or an index beyond the number of peers.
    """
    network = options.network
    spec = manifest.spec
    admission = admission or Admission(frozenset(options.anchors))
    settings = SwarmSettings(
        admission=admission.admits,
        keep_rounds=kept_rounds(manifest),
        limits=_limits(manifest, rollouts_per_group),
        sources=sources or Sources(),
        anchors=admission.anchors,
        probation_rounds=spec.communication.probation_rounds,
        counted_per_address=spec.communication.counted_per_address,
        max_rounds=spec.game.max_rounds,
        stages=spec.game.stages,
        rollout_tokens=rollout_tokens,
    )
    if spec.communication.backend == "TorchDistributed":
        from swarmgame.swarm.transports.rank_group import RankAddress
        from swarmgame.swarm.transports.torch_distributed import TorchDistributedCommunication

        address = RankAddress(options.index, spec.peers.replicas, *_host_and_port(network.rendezvous))
        if address.rank >= address.size:
            raise BadUsage(
                f"--index is {address.rank}; expected less than spec.peers.replicas, {address.size}, "
                "with TorchDistributed"
            )
        return TorchDistributedCommunication(run_id(manifest), network.identity, address, settings=settings)
    with warnings.catch_warnings():
        # hivemind compiles functions of its mixture of experts when it is imported; nothing here uses them.
        warnings.filterwarnings("ignore", message="`torch.jit.script` is", category=FutureWarning)
        from swarmgame.swarm.transports.libp2p import HivemindCommunication

    known = (*bootnodes, *spec.communication.initial_peers, *network.initial_peers)
    return HivemindCommunication(run_id(manifest), replace(network, initial_peers=known), settings=settings)


def _limits(manifest: SwarmGame, rollouts_per_group: int) -> codec.Limits:
    """Return what a contribution of the game may hold; without an environment a rollout has no segments."""
    environment = manifest.spec.game.environment
    limits = codec.Limits(segments=2 * environment.max_turns if environment is not None else 0)
    return replace(limits, rollouts_per_group=rollouts_per_group) if rollouts_per_group else limits


def _host_and_port(rendezvous: str) -> tuple[str, int]:
    found = split_host_and_port(rendezvous)
    if found is None:
        raise BadUsage(
            f"--rendezvous is {rendezvous!r}; expected HOST:PORT of peer 0, or [IPV6]:PORT: with TorchDistributed the "
            "peers meet there"
        )
    return found


class PeerCommunication:
    """The `CommunicationManager` of one rank of a peer.

    Args:
        backend: on rank 0; None on the others.
        run: the id of the run.
        keep_rounds: how many rounds back other peers may still need a contribution.
        interrupted: whether this process has to stop; called on rank 0 while it waits for the swarm.
        work: bounds what is used of the contributions of other peers; None: all is.
        stages: of a round.
    """

    def __init__(
        self,
        backend: Backend | None,
        ranks: Ranks,
        *,
        peer: PeerId,
        run: str,
        keep_rounds: int,
        interrupted: Callable[[], bool] = lambda: False,
        work: RemoteWork | None = None,
        stages: int = 1,
    ) -> None:
        if (backend is None) == (ranks.rank == 0):
            raise ValueError("rank 0, and only rank 0, holds the backend")
        self._backend = backend
        self._ranks = ranks
        self.peer = peer
        self._run = run
        self._keep_rounds = keep_rounds
        self._interrupted = interrupted
        self._work = work
        self._stages = stages
        self._published: dict[tuple[int, int], tuple[Contribution, tuple[Claim, ...]]] = {}

    def join(self, *, expect: Sequence[PeerId] = (), min_replicas: int = 1, timeout_seconds: float = 120.0) -> None:
        """Join, and publish again what other peers may have missed."""

        def join(backend: CommunicationManager) -> None:
            backend.join(expect=expect, min_replicas=min_replicas, timeout_seconds=timeout_seconds)
            for contribution, claims in self._published.values():
                backend.publish(contribution, claims)

        self._on_rank_0(join, pack=lambda _: None, unpack=lambda _: None)

    def membership(self) -> tuple[Member, ...]:
        return self._on_rank_0(
            lambda backend: backend.membership(),
            pack=lambda members: [astuple(member) for member in members],
            unpack=lambda rows: tuple(Member(*row) for row in rows),
        )

    def announce_progress(self, round: int, stage: int) -> None:
        if self._backend is not None:
            self._backend.announce_progress(round, stage)

    def publish(self, contribution: Contribution, claims: Sequence[Claim] = ()) -> None:
        if self._backend is None:
            return
        self._published[contribution.round, contribution.stage] = contribution, tuple(claims)
        oldest = contribution.round - self._keep_rounds
        self._published = {when: kept for when, kept in self._published.items() if when[0] >= oldest}
        self._backend.publish(contribution, claims)

    def collect(
        self, round: int, stage: int, policy: CollectPolicy, *, stopped: Callable[[], bool] = lambda: False
    ) -> Collected:
        # `stopped` is a collective call of all ranks (see `agreed`); only rank 0 runs here, so its own process
        # decides.
        here = stopped if self._ranks.size == 1 else self._interrupted

        def collect(backend: CommunicationManager) -> Collected:
            collected = backend.collect(round, stage, policy, stopped=here)
            if self._work is None:
                return collected
            own, _ = self._published.get((round, stage), (None, ()))
            return self._work.bounded(collected, own, round=round, stages=self._stages)

        return self._on_rank_0(collect, pack=self._pack, unpack=_unpack)

    def leave(self) -> None:
        if self._backend is not None:
            self._backend.leave()

    # ── checkpoint
    def state_dict(self) -> Mapping[str, Any]:
        """Return what was published in the last rounds, in the wire format, and which peers count."""
        published = [
            {
                "shards": self._shards(contribution),
                "claims": [(claim.mean, claim.nonzero_advantage) for claim in claims],
            }
            for contribution, claims in self._published.values()
        ]
        standings = self._backend.state_dict() if self._backend is not None else {}
        return {"peer": self.peer, "published": published, "standings": standings}

    def load_state_dict(self, state: Mapping[str, Any], next_round: int) -> None:
        """Take back what was published, and which peers count.

        Args:
            next_round: the round to go on with. What was published of it before a stop is left out: it is played and
                published again, and may differ (other data, rewards or threads).

        Raises:
            codec.Malformed: it is not in the wire format of this release.
        """
        if self._backend is None:
            return
        if state["peer"] != self.peer:
            return  # another identity (the key file was lost): no peer would accept these contributions from this one
        for entry in state["published"]:
            contribution = codec.decode(entry["shards"])
            claims = tuple(Claim(*claim) for claim in entry["claims"])
            if contribution.round < next_round:
                self._published[contribution.round, contribution.stage] = contribution, claims
        if state.get("standings"):
            self._backend.load_state_dict(state["standings"])

    # ── ranks
    def _on_rank_0(
        self, call: Callable[[CommunicationManager], T], *, pack: Callable[[T], Any], unpack: Callable[[Any], T]
    ) -> T:
        """Call the backend on rank 0, and return its result on every rank."""
        if self._backend is not None:
            result = call(self._backend)
            if self._ranks.size > 1:
                self._ranks.broadcast(msgpack.packb(pack(result)))
            return result
        return unpack(msgpack.unpackb(self._ranks.broadcast(None), strict_map_key=False))

    def _shards(self, contribution: Contribution) -> list[bytes]:
        return [shard.data for shard in codec.encode(contribution, self._run)]

    def _pack(self, collected: Collected) -> dict[str, Any]:
        return {
            "contributions": [self._shards(contribution) for contribution in collected.contributions],
            "members": list(collected.members),
            "missing": list(collected.missing),
            "closed_by": str(collected.closed_by),
            "outcomes": dict(collected.outcomes),
            "seconds": collected.seconds,
            "bytes_sent": collected.bytes_sent,
            "bytes_received": collected.bytes_received,
            "arrivals": list(collected.arrivals),
            "standings": dict(collected.standings),
            "clock_error": astuple(collected.clock_error) if collected.clock_error is not None else None,
        }


def _unpack(packed: Mapping[str, Any]) -> Collected:
    return Collected(
        contributions=tuple(codec.decode(shards) for shards in packed["contributions"]),
        members=tuple(packed["members"]),
        missing=tuple(packed["missing"]),
        closed_by=ClosedBy(packed["closed_by"]),
        outcomes=packed["outcomes"],
        seconds=packed["seconds"],
        bytes_sent=packed["bytes_sent"],
        bytes_received=packed["bytes_received"],
        arrivals=tuple(packed["arrivals"]),
        standings=packed["standings"],
        clock_error=ClockError(*packed["clock_error"]) if packed["clock_error"] is not None else None,
    )
