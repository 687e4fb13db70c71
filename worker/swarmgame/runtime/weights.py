"""The hash of a policy's weights: 32 hexadecimal digits, recorded after every round.

The beginning of a SHA-256 over names, types, shapes and bytes. Of a tensor on an accelerator only two sums of its bits
modulo 2^64 are hashed, taken there, so that 16 bytes are moved and not the weights. Equal weights have equal hashes on
devices of one kind. The sums find accidents, not forgeries: they can be made equal on purpose. Sharded tensors are
completed one after another, so that no device holds them all.
"""

from __future__ import annotations

import hashlib
import json

import torch

from swarmgame.game.components import Trainer
from swarmgame.runtime.checkpoint import flatten
from swarmgame.trainer.shards import complete

_CHUNK = 1 << 22
_FIRST, _SECOND = 0x9E3779B97F4A7C15 - (1 << 64), 0xC2B2AE3D27D4EB4F - (1 << 64)
"""Odd constants of SplitMix64 and xxHash, as signed 64-bit integers."""
_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def weights_hash(trainer: Trainer) -> str:
    """Return the hash of a trainer's weights, or of its complete state where it does not name them. A call of all ranks
    where they share the weights.
    """
    named = trainer.weights()
    tensors: dict[str, torch.Tensor] = {}
    tree = flatten(named or trainer.state_dict(), "", tensors, copy=False)
    digest = hashlib.sha256(json.dumps(tree, sort_keys=True).encode())
    for name, tensor in tensors.items():
        digest.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
        flat = complete(tensor).detach().contiguous().view(-1)
        if flat.device.type == "cpu":
            digest.update(flat.view(torch.uint8).numpy().data)
        else:
            digest.update(json.dumps(sums(flat)).encode())
    return digest.hexdigest()[:32]


def sums(flat: torch.Tensor) -> tuple[int, int]:
    """Return two sums over the elements of a tensor of one dimension, as integers; each element is multiplied by a
    number that depends on its place.
    """
    if flat.is_complex():
        flat = torch.view_as_real(flat).view(-1)
    bits = flat.view(_INTEGERS[flat.element_size()])
    first = second = torch.zeros((), dtype=torch.int64, device=bits.device)
    for start in range(0, len(bits), _CHUNK):
        values = bits[start : start + _CHUNK].to(torch.int64)
        places = torch.arange(start + 1, start + 1 + len(values), device=bits.device) * _FIRST
        first = first + (values * (places | 1)).sum()
        second = second + ((values ^ (places >> 31)) * _SECOND * (values + places | 1)).sum()
    return int(first), int(second)
