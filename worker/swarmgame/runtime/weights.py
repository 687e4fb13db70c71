"""The hash of a policy's weights: 32 hexadecimal digits, recorded after every round.

Two sums of each tensor's bits modulo 2^64 are taken where the tensor is, so that a device sends 16 bytes and not its
weights; BLAKE2b joins them with names, types and shapes. Equal weights have equal hashes on every device. The sums
find accidents, not forgeries: whoever can choose weights can make two sets with equal sums.
"""

from __future__ import annotations

import hashlib
import json

import torch

from swarmgame.game.components import Trainer
from swarmgame.runtime.checkpoint import flatten

_CHUNK = 1 << 22
_FIRST, _SECOND = 0x9E3779B97F4A7C15 - (1 << 64), 0xC2B2AE3D27D4EB4F - (1 << 64)
"""Odd constants of SplitMix64 and xxHash, as signed 64-bit integers."""
_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def weights_hash(trainer: Trainer) -> str:
    """Return the hash of a trainer's weights, or of its complete state where it does not name them."""
    named = trainer.weights()
    tensors: dict[str, torch.Tensor] = {}
    tree = flatten(named or trainer.state_dict(), "", tensors, copy=False)
    digest = hashlib.blake2b(json.dumps(tree, sort_keys=True).encode(), digest_size=16, person=b"swarmgame-wgt")
    for name, tensor in tensors.items():
        head = [name, str(tensor.dtype), list(tensor.shape), *_sums(tensor.detach())]
        digest.update(json.dumps(head).encode())
    return digest.hexdigest()


def _sums(tensor: torch.Tensor) -> tuple[int, int]:
    """Return two sums over a tensor's elements as integers, each multiplied by a number that depends on its place."""
    if tensor.is_complex():
        tensor = torch.view_as_real(tensor)
    bits = tensor.contiguous().view(-1).view(_INTEGERS[tensor.element_size()])
    first = second = torch.zeros((), dtype=torch.int64, device=bits.device)
    for start in range(0, len(bits), _CHUNK):
        values = bits[start : start + _CHUNK].to(torch.int64)
        places = torch.arange(start + 1, start + 1 + len(values), device=bits.device) * _FIRST
        first = first + (values * (places | 1)).sum()
        second = second + ((values ^ (places >> 31)) * _SECOND * (values + places | 1)).sum()
    return int(first), int(second)
