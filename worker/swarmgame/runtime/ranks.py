"""Ranks over torch.distributed: the processes that torchrun starts for one peer.

Gloo carries bytes and, on a CPU, gradients; NCCL carries gradients between GPUs. Nothing is pickled: bytes travel as
uint8 tensors behind their length. Invariants: every rank makes the same calls in the same order; a rank that died or
hangs ends the others with `Temporary` within the timeout, so that the peer can resume as a whole.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from types import TracebackType
from typing import Self

import torch
import torch.distributed as dist

from swarmgame.errors import BadUsage, Temporary
from swarmgame.game.ranks import OneRank

MAX_BYTES = 1 << 31
TIMEOUT_SECONDS = 1800.0
"""Longer than rank 0 may be busy by itself: waiting for a stage to close, saving, evaluating. A rank that dies is
noticed at once.
"""


class DistributedRanks:
    """The processes of one peer, joined by torch.distributed. Use `ranks_from_environment` to make one."""

    def __init__(self, rank: int, size: int, *, on_gpu: bool, timeout_seconds: float = TIMEOUT_SECONDS) -> None:
        self._rank = rank
        self._size = size
        self._timeout = timeout_seconds
        with self._explained("joining"):
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
        """Rank 0's bytes, on every rank; the others pass None."""
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
        """Every rank's bytes, in the order of ranks, on every rank."""
        with self._explained("gathering bytes"):
            lengths = torch.empty(self._size, dtype=torch.int64)
            dist.all_gather_into_tensor(lengths, torch.tensor([len(payload)], dtype=torch.int64))
            sizes = [_checked(int(length)) for length in lengths]
            longest = max(sizes)
            if not longest:
                return [b""] * self._size
            own = torch.zeros(longest, dtype=torch.uint8)
            own[: len(payload)] = _tensor(payload)
            everyone = torch.empty(self._size * longest, dtype=torch.uint8)
            dist.all_gather_into_tensor(everyone, own)
        rows = everyone.view(self._size, longest)
        return [row[:size].numpy().tobytes() for row, size in zip(rows, sizes, strict=True)]

    def sum_gradients(self, parameters: list[torch.nn.Parameter]) -> None:
        """Adds up the gradients of all ranks, in place, in one call over one flat float32 buffer; none counts as zeros."""
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
        """Leaves the group after a good end: its threads must not outlive the interpreter. After a bad one there may be
        nobody to part from.
        """
        if kind is None:
            self.close()

    def close(self) -> None:
        """Leaves the group. May be called twice."""
        if dist.is_initialized():
            dist.destroy_process_group()

    @contextmanager
    def _explained(self, doing: str) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:  # DistBackendError, DistNetworkError and gloo's own are all of this kind
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise Temporary(
                f"rank {self._rank} of {self._size} lost the other processes of its peer while {doing} (a process died, or was silent for "
                f"{self._timeout:g} s): {reason}. The peer ends; run it again and it resumes from its last checkpoint"
            ) from error


def ranks_from_environment(timeout_seconds: float = TIMEOUT_SECONDS) -> OneRank | DistributedRanks:
    """One rank, or, under torchrun, this process as one of several; on a machine with GPUs each rank takes the one of
    its LOCAL_RANK.

    Raises:
        BadUsage: torchrun's environment is incomplete, or there are more ranks than GPUs.
        Temporary: the other ranks did not come.
    """
    size = _number("WORLD_SIZE", 1)
    if size == 1:
        return OneRank()
    rank, local = _number("RANK"), _number("LOCAL_RANK")
    on_gpu = torch.cuda.is_available()
    if on_gpu:
        if local >= torch.cuda.device_count():
            raise BadUsage(
                f"process {local} of this machine has no GPU: there are {torch.cuda.device_count()}; start as many processes"
            )
        torch.cuda.set_device(local)
    return DistributedRanks(rank, size, on_gpu=on_gpu, timeout_seconds=timeout_seconds)


def _number(name: str, default: int | None = None) -> int:
    value = os.environ.get(name)
    if value is None and default is not None:
        return default
    if value is None or not value.isdecimal():
        raise BadUsage(f"{name} is {value!r}; expected the number that torchrun sets")
    return int(value)


def _checked(length: int) -> int:
    if not 0 <= length <= MAX_BYTES:
        raise RuntimeError(f"a rank announced {length} bytes: the ranks are out of step")
    return length


def _tensor(payload: bytes) -> torch.Tensor:
    return torch.frombuffer(bytearray(payload), dtype=torch.uint8) if payload else torch.empty(0, dtype=torch.uint8)


def _gradient(parameter: torch.nn.Parameter) -> torch.Tensor:
    return parameter.grad if parameter.grad is not None else torch.zeros_like(parameter)
