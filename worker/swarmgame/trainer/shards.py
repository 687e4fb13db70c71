"""Shards: parameters that the ranks of a peer divide among themselves (DTensors, made by torch's FSDP2).

Of n ranks, each holds a part of a parameter's rows: ⌈rows / n⌉ of them, the last ranks fewer or none. What returns a
complete tensor is a collective call: every rank makes it, for the same tensors in the same order.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from swarmgame.game.ranks import Ranks


def is_sharded(tensor: Tensor) -> bool:
    """Return whether this rank holds but a part of the tensor."""
    # The class itself is in a module that takes a second to import, and most peers have one rank.
    return hasattr(tensor, "full_tensor")


def own_part(tensor: Any) -> Tensor:
    """Return this rank's rows of a sharded tensor, in its memory."""
    part: Tensor = tensor.detach().to_local()
    return part


def part_of(complete: Tensor, like: Any) -> Tensor:
    """Return the rows of a complete tensor that this rank holds of `like`. Not a collective call."""
    rank, size = like.device_mesh.get_local_rank(), like.device_mesh.size()
    rows = -(-len(complete) // size)
    return complete[min(rank * rows, len(complete)) : min((rank + 1) * rows, len(complete))]


def joined(part: Tensor, like: Any) -> Tensor:
    """Return the complete tensor of which each rank holds such a part as of `like`. A collective call."""
    from torch.distributed.tensor import DTensor

    made: Any = DTensor.from_local(
        part, like.device_mesh, like.placements, run_check=False, shape=like.shape, stride=like.stride()
    )
    complete: Tensor = made.full_tensor()
    return complete


def complete(tensor: Tensor) -> Tensor:
    """Return a tensor with all its rows: itself, or the ranks' parts of it. A collective call where it is sharded."""
    return joined(own_part(tensor), tensor) if is_sharded(tensor) else tensor


def norm_over_ranks(parts: Sequence[Tensor], ranks: Ranks) -> Tensor:
    """Return the norm of tensors of which every rank holds a part; equal to the last bit on all ranks. A collective
    call.
    """
    own = float(torch.nn.utils.get_total_norm(parts))
    squares = [struct.unpack("<d", payload)[0] for payload in ranks.gather(struct.pack("<d", own * own))]
    return torch.tensor(math.sqrt(sum(squares)), dtype=torch.float32, device=parts[0].device)
