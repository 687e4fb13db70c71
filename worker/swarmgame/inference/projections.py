"""Linear layers of one input, computed as one product.

The weights lie side by side in one memory, of which the parameters are views, so that an update in place is seen by
the product, and training sees no difference. Modules with adapters are called one after the other.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from swarmgame.inference.architecture import linears_of

Map = Callable[[Tensor], Tensor]


@torch.inference_mode(mode=False)  # the parameters go on to be trained
def join_projections(model: Any) -> None:
    """Put the weights of each layer's q, k and v projections side by side in memory, and those of gate and up.

    The parameters stay what they are, with views of the joined memory as data, so training and checkpoints see no
    difference and an update in place is seen by a decoder that reads the joined matrix. Adapted layers are left alone.
    Calling it again changes nothing.
    """
    for layer in model.model.layers:
        linears = linears_of(layer)
        for group in (linears.qkv, linears.gate_up):
            if any(type(linear) is not nn.Linear for linear in group):
                continue
            for parameters in ([linear.weight for linear in group], [linear.bias for linear in group]):
                if any(parameter is None for parameter in parameters) or joined_view(parameters) is not None:
                    continue
                joined = torch.cat([parameter.data for parameter in parameters])
                for parameter, part in zip(
                    parameters, torch.split(joined, [len(parameter) for parameter in parameters]), strict=True
                ):
                    parameter.data = part


def joined_view(parameters: Sequence[Tensor]) -> Tensor | None:
    """Return the matrix that the parameters are parts of, as a view, or None when they do not lie side by side in one
    memory.
    """
    first = parameters[0]
    place = first.data_ptr()
    for parameter in parameters:
        same = parameter.untyped_storage().data_ptr() == first.untyped_storage().data_ptr()
        if not (same and parameter.is_contiguous() and parameter.data_ptr() == place):
            return None
        place += parameter.numel() * parameter.element_size()
    rows = sum(len(parameter) for parameter in parameters)
    return first.detach().as_strided((rows, *first.shape[1:]), first.stride())


def query_key_value_bias(layer: Any) -> Tensor | None:
    """Return the joined bias of a layer's q, k and v projections, where they are joined and have one."""
    joined = _joined(linears_of(layer).qkv)
    return None if joined is None else joined[1]


def joined_map(linears: Sequence[Any], product: Callable[..., Tensor] = F.linear) -> Map:
    """Several linear layers of one input, side by side; `product` takes the joined weight and bias."""
    joined = _joined(linears)
    if joined is not None:
        return partial(product, weight=joined[0], bias=joined[1])
    if len(linears) == 1:
        return partial(product_of, linear=linears[0])
    return lambda x: torch.cat([linear(x) for linear in linears], dim=-1)


def product_of(x: Tensor, linear: Any) -> Tensor:
    """A linear layer without what a module does around its product; one with adapters as it is."""
    product: Tensor = F.linear(x, linear.weight, linear.bias) if type(linear) is nn.Linear else linear(x)
    return product


def _joined(linears: Sequence[Any]) -> tuple[Tensor, Tensor | None] | None:
    """The joined weight and bias of plain linear layers; None with adapters."""
    if any(type(linear) is not nn.Linear for linear in linears):
        return None
    weight = joined_view([linear.weight for linear in linears])
    biases = [linear.bias for linear in linears]
    bias = (
        None
        if all(one is None for one in biases)
        else joined_view(biases)
        if all(one is not None for one in biases)
        else None
    )
    if weight is None or (bias is None and any(one is not None for one in biases)):
        return None
    return weight, bias
