"""Noise of training: none but the dropout of adapters.

A policy that is trained must be the one that sampled, so its own dropout, layer drop and router jitter stay off. A
model is therefore trained in evaluation mode, in which no architecture of transformers has noise, whatever it calls
it; only adapters are in training mode, and modules that compute activations twice (gradient checkpointing), which do it
in training mode alone. What such a module may do beside is taken out once when the model is loaded.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

_NOISE = re.compile(r"drop|jitter")
"""In the names of rates: attention_dropout, attn_pdrop, layerdrop, drop_path_rate, router_jitter_noise,
moe_jitter_eps."""


def remove_noise(model: nn.Module) -> None:
    """Set every rate of dropout, layer drop and jitter of a model's modules to zero. Its configuration, which exports
    write, does not change.
    """
    for module in model.modules():
        if isinstance(module, nn.modules.dropout._DropoutNd):
            module.p = 0.0
        for name, value in vars(module).items():
            if isinstance(value, float) and value > 0 and _NOISE.search(name):
                setattr(module, name, 0.0)


@contextmanager
def training_mode(model: nn.Module, device: torch.device, seed: int) -> Iterator[None]:
    """Put a model into the mode in which it is trained, with a random state of its own: adapters have their dropout,
    nothing else has any. Afterwards it is in evaluation mode.
    """
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        model.eval()
        for module in model.modules():
            if getattr(module, "gradient_checkpointing", False):
                module.training = True
            elif type(module).__module__.startswith("peft.tuners."):  # by name: peft takes a second to import
                module.training = True
                for name, part in module.named_children():
                    if name != "base_layer":
                        part.train()
        try:
            yield
        finally:
            model.eval()


def computes_twice(model: Any) -> bool:
    """Return whether a module of the model computes its activations twice, in its present mode."""
    return any(getattr(module, "gradient_checkpointing", False) and module.training for module in model.modules())
