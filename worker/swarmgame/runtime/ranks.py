"""Ranks over torch.distributed: the processes that torchrun starts for one peer.

Gloo carries bytes and, on a CPU, gradients; NCCL carries gradients between GPUs. Nothing is pickled: bytes travel as
uint8 tensors after their length. Invariants: every rank makes the same calls in the same order; a rank that dies or
hangs ends the others with `Temporary` within the timeout, so that all of the peer can resume.
"""

from __future__ import annotations

import os
import struct
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from types import TracebackType
from typing import Annotated, Self

import msgpack
import torch
import torch.distributed as dist
from pydantic import Field

from swarmgame.errors import BadUsage, Temporary
from swarmgame.game.components import RewardManager
from swarmgame.game.ranks import OneRank, Ranks
from swarmgame.game.remote_work import RemoteWork
from swarmgame.game.reward_checks import ScoringFailure, checked_rewards
from swarmgame.game.state import GameState, PeerId, Rewards
from swarmgame.runtime.assembly import Components, ResolvedGame, assemble, context_of
from swarmgame_api.manifest import SwarmGame
from swarmgame_common.settings import Digits, EnvironmentSettings, InvalidSettings, Variable, read_settings

MAX_BYTES = 1 << 31
TIMEOUT_SECONDS = 1800.0
"""Longer than rank 0 may be busy alone: waiting for a stage to close, saving, evaluating. A rank that dies is noticed
at once.
"""


LOOPBACK = "lo0" if sys.platform == "darwin" else "lo"


class DistributedRanks:
    """The processes of one peer, connected by torch.distributed. `ranks_from_environment` makes one."""

    def __init__(self, rank: int, size: int, *, on_gpu: bool, timeout_seconds: float = TIMEOUT_SECONDS) -> None:
        self._rank = rank
        self._size = size
        self._timeout = timeout_seconds
        with self._explained("joining"), _on_loopback():
            dist.init_process_group(
                backend="cpu:gloo,cuda:nccl" if on_gpu else "gloo",
                rank=rank,
                world_size=size,
                timeout=timedelta(seconds=timeout_seconds),
            )

    @property
    def rank(self) -> int:
        return self._rank

    @property
    def size(self) -> int:
        return self._size

    def broadcast(self, payload: bytes | None) -> bytes:
        """Return rank 0's bytes on every rank; the others pass None."""
        if self._rank == 0 and payload is None:
            raise ValueError("rank 0 must have something to broadcast")
        with self._explained("receiving rank 0's bytes"):
            length = torch.tensor([len(payload) if payload is not None else 0], dtype=torch.int64)
            dist.broadcast(length, src=0)
            body = _tensor(payload) if payload is not None else torch.empty(_checked(int(length)), dtype=torch.uint8)
            if len(body):
                dist.broadcast(body, src=0)
        return body.numpy().tobytes()

    def gather(self, payload: bytes) -> list[bytes]:
        """Return every rank's bytes, in the order of ranks, on every rank."""
        with self._explained("gathering bytes"):
            lengths = torch.empty(self._size, dtype=torch.int64)
            dist.all_gather_into_tensor(lengths, torch.tensor([len(payload)], dtype=torch.int64))
            sizes = [_checked(int(length)) for length in lengths]
            longest = max(sizes)
            if not longest:
                return [b""] * self._size
            own = torch.zeros(longest, dtype=torch.uint8)
            own[: len(payload)] = _tensor(payload)
            gathered = torch.empty(self._size * longest, dtype=torch.uint8)
            dist.all_gather_into_tensor(gathered, own)
        rows = gathered.view(self._size, longest)
        return [row[:size].numpy().tobytes() for row, size in zip(rows, sizes, strict=True)]

    def sum_gradients(self, parameters: list[torch.nn.Parameter]) -> None:
        """Add up the gradients of all ranks, in place, in one call over a flat float32 buffer. None counts as zeros."""
        if not parameters:
            return
        flat = torch.cat([_gradient(parameter).reshape(-1).float() for parameter in parameters])
        with self._explained("adding up gradients"):
            # Over gloo first: it notices a dead rank, where NCCL would abort the process. It also catches ranks that
            # are out of step.
            counts = torch.empty(self._size, dtype=torch.int64)
            dist.all_gather_into_tensor(counts, torch.tensor([flat.numel()], dtype=torch.int64))
            if len(set(counts.tolist())) > 1:
                raise RuntimeError(
                    f"ranks have gradients of {counts.tolist()} numbers: they are not training the same model"
                )
            dist.all_reduce(flat, op=dist.ReduceOp.SUM)
        start = 0
        for parameter in parameters:
            part = flat[start : start + parameter.numel()].view_as(parameter).to(parameter.dtype)
            parameter.grad = part.clone()
            start += parameter.numel()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Leave the group after success: its threads must not outlive the interpreter. After an error the other ranks
        may be gone, and leaving would wait for them.
        """
        if kind is None:
            self.close()

    def close(self) -> None:
        """Leave the group. May be called twice."""
        if dist.is_initialized():
            dist.destroy_process_group()

    @contextmanager
    def guarded(self, doing: str) -> Iterator[None]:
        """Turn the loss of a rank into `Temporary`, and leave other errors as they are."""
        try:
            yield
        except RuntimeError as error:
            if not _is_of_backend(error):
                raise
            raise self._lost(doing, error) from error

    @contextmanager
    def _explained(self, doing: str) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:  # DistBackendError, DistNetworkError and gloo's own are all of this kind
            raise self._lost(doing, error) from error

    def _lost(self, doing: str, error: RuntimeError) -> Temporary:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        return Temporary(
            f"rank {self._rank} of {self._size} lost the other processes of its peer while {doing} (a process "
            f"died, or was silent for {self._timeout:g} s): {reason}. The peer ends; run it again and it resumes "
            "from its last checkpoint"
        )


@contextmanager
def _on_loopback() -> Iterator[None]:
    """Let gloo, which reads the variable when a group is made, use the loopback interface: the ranks of a peer are on
    one machine. Another group of this process may need other machines.
    """
    name = "GLOO_SOCKET_IFNAME"
    before = os.environ.get(name)
    os.environ[name] = before or LOOPBACK
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]


class _TorchrunSettings(EnvironmentSettings):
    """What torchrun tells a rank by its environment."""

    rank: Annotated[int, Digits, Field(ge=0), Variable("RANK", expected="the number that torchrun sets")]
    local_rank: Annotated[int, Digits, Field(ge=0), Variable("LOCAL_RANK", expected="the number that torchrun sets")]
    size: Annotated[int, Digits, Field(ge=1), Variable("WORLD_SIZE", expected="the number that torchrun sets")]


def ranks_from_environment(timeout_seconds: float = TIMEOUT_SECONDS) -> OneRank | DistributedRanks:
    """Return one rank or, under torchrun, this process as one of several. On a machine with GPUs each rank takes the
    one of its LOCAL_RANK.

    Raises:
        BadUsage: torchrun's environment is incomplete, or there are more ranks than GPUs.
        Temporary: the other ranks did not come.
    """
    if os.environ.get("WORLD_SIZE", "1") == "1":
        return OneRank()
    try:
        given = read_settings(_TorchrunSettings, os.environ)
    except InvalidSettings as error:
        raise BadUsage(str(error)) from error
    on_gpu = torch.cuda.is_available()
    if on_gpu:
        if given.local_rank >= torch.cuda.device_count():
            raise BadUsage(
                f"process {given.local_rank} of this machine has no GPU: there are {torch.cuda.device_count()}; "
                "start as many processes"
            )
        torch.cuda.set_device(given.local_rank)
    return DistributedRanks(given.rank, given.size, on_gpu=on_gpu, timeout_seconds=timeout_seconds)


class RankedRewards(RewardManager):
    """Rewards that rank 0 computes for all ranks, sent in the order of `state.groups()`.

    Args:
        inner: the rewards, on rank 0; None on the others, so that only one sandbox runs.
    """

    def __init__(self, inner: RewardManager | None, ranks: Ranks) -> None:
        if (inner is None) == (ranks.rank == 0):
            raise ValueError("rank 0, and only rank 0, computes the rewards")
        self.inner = inner
        self._ranks = ranks
        if inner is not None:
            self.full_reward = inner.full_reward

    def rewards(self, state: GameState) -> Rewards:
        packed = None
        if self.inner is not None:
            # Checked before packing, so that the message names the manager and the group.
            scored = checked_rewards(self.inner.rewards(state), state, type(self.inner).__name__)
            self.full_reward = self.inner.full_reward
            packed = msgpack.packb([_pack(scored.get(key)) for key, _ in state.groups()])
        received = msgpack.unpackb(self._ranks.broadcast(packed))
        rows = zip(state.groups(), received, strict=True)
        return {key: struct.unpack(f"<{len(row) // 8}d", row) for (key, _), row in rows if row is not None}

    def round_scored(self, state: GameState) -> None:
        if self.inner is not None:
            self.inner.round_scored(state)

    def failures(self) -> Sequence[ScoringFailure]:
        return self.inner.failures() if self.inner is not None else ()

    def counters(self) -> Mapping[str, int]:
        return self.inner.counters() if self.inner is not None else {}

    def close(self) -> None:
        if self.inner is not None:
            self.inner.close()


def agreed(stopped: Callable[[], bool], ranks: Ranks) -> Callable[[], bool]:
    """Return a condition that rank 0 decides for all, so that no rank leaves the loop without the others."""
    if ranks.size == 1:
        return stopped

    def decide() -> bool:
        return ranks.broadcast(bytes([stopped()]) if ranks.rank == 0 else None) == b"\x01"

    return decide


def rank_components(
    manifest: SwarmGame, resolved: ResolvedGame, ranks: Ranks, peer: PeerId, directory: Path, work: RemoteWork
) -> Components:
    """Create the components of this rank. Rank 0 holds the sandbox; the others get its rewards."""
    device = f"cuda:{torch.cuda.current_device()}" if torch.cuda.is_available() else "cpu"
    context = context_of(
        manifest,
        folder=resolved.folder,
        peer=peer,
        ranks=ranks,
        device=device,
        directory=directory.absolute(),
        remote_work=work,
    )
    if ranks.size == 1:
        return assemble(resolved, context)
    if ranks.rank == 0:
        components = assemble(resolved, context)
        return replace(components, rewards=RankedRewards(components.rewards, ranks))
    return assemble(resolved, context, rewards=RankedRewards(None, ranks))


def _pack(rewards: Sequence[float] | None) -> bytes | None:
    return None if rewards is None else struct.pack(f"<{len(rewards)}d", *rewards)


def _checked(length: int) -> int:
    if not 0 <= length <= MAX_BYTES:
        raise RuntimeError(f"a rank announced {length} bytes: the ranks are out of step")
    return length


def _tensor(payload: bytes) -> torch.Tensor:
    return torch.frombuffer(bytearray(payload), dtype=torch.uint8) if payload else torch.empty(0, dtype=torch.uint8)


def _is_of_backend(error: RuntimeError) -> bool:
    """Return whether gloo or NCCL raised it. Gloo's errors have no class of their own, but name its source file."""
    return isinstance(error, dist.DistError) or "/gloo/" in str(error)


def _gradient(parameter: torch.nn.Parameter) -> torch.Tensor:
    return parameter.grad if parameter.grad is not None else torch.zeros_like(parameter)
