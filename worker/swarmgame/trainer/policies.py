"""Small policies by name: networks from an observation to one logit an action, for games without a language model.

Any other module from observations [B, …] to logits [B, A] can be named as `package.module:factory`.
"""

from __future__ import annotations

import importlib
import itertools
import json
from collections.abc import Callable, Mapping
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from swarmgame.errors import InvalidManifest

PATH = "spec.game.trainer.with"


class Mlp(nn.Sequential):
    """Layers of equal width with tanh between them; the observation is flattened.

    Args:
        inputs: numbers in an observation.
        actions: logits.
        hidden: width.
        layers: hidden layers; 0 makes a linear policy.
    """

    def __init__(self, actions: int, inputs: int = 1, hidden: int = 64, layers: int = 1) -> None:
        widths = [inputs] + [hidden] * layers
        parts: list[nn.Module] = [nn.Flatten()]
        for before, after in itertools.pairwise(widths):
            parts += [nn.Linear(before, after), nn.Tanh()]
        super().__init__(*parts, nn.Linear(widths[-1], actions))


class Cnn(nn.Module):
    """Two 3×3 convolutions, then a linear layer; keeps the size of the image.

    Args:
        shape: channels, height and width of an observation; one without channels (`[height, width]`) gets one.
        actions: logits.
        channels: of the convolutions.
        hidden: width of the last layer but one.
    """

    def __init__(self, actions: int, shape: tuple[int, ...] = (1, 8, 8), channels: int = 16, hidden: int = 64) -> None:
        super().__init__()
        self.shape = (1, *shape) if len(shape) == 2 else tuple(shape)
        self.layers = nn.Sequential(
            nn.Conv2d(self.shape[0], channels, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(channels, channels, 3, padding=1),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(channels * prod(self.shape[1:]), hidden),
            nn.ReLU(),
            nn.Linear(hidden, actions),
        )

    def forward(self, observations: Tensor) -> Tensor:
        logits: Tensor = self.layers(observations.reshape(-1, *self.shape))
        return logits


BUILTIN: Mapping[str, Callable[..., nn.Module]] = {"mlp": Mlp, "cnn": Cnn}


def build_policy(module: str, actions: int, options: Mapping[str, Any], seed: int) -> nn.Module:
    """Make a network by name, with weights that depend only on the seed. Torch's random state does not change.

    Raises:
        InvalidManifest: there is no such factory, or it does not take these options.
    """
    factory = BUILTIN.get(module) or _imported(module)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            network = factory(actions=actions, **options)
        except (TypeError, ValueError, RuntimeError) as error:
            raise InvalidManifest(f"{PATH}.options", dict(options), f"options that {module} takes: {error}") from error
    if not isinstance(network, nn.Module):
        raise InvalidManifest(
            f"{PATH}.module", module, f"a factory of a torch.nn.Module; it made a {type(network).__name__}"
        )
    if not any(parameter.requires_grad for parameter in network.parameters()):
        raise InvalidManifest(f"{PATH}.module", module, "a module with parameters that learn")
    return network


def save_policy(folder: Path, policy: nn.Module, module: str, actions: int, options: Mapping[str, Any]) -> None:
    """Write `policy.safetensors`, and `policy.json` with the arguments that make the module.

    Args:
        module, actions, options: of `build_policy`.

    Raises:
        OSError: the folder cannot be written.
    """
    from safetensors.torch import save_model

    folder.mkdir(parents=True, exist_ok=True)
    save_model(policy, str(folder / "policy.safetensors"))
    description = {"module": module, "actions": actions, "options": dict(options)}
    (folder / "policy.json").write_text(json.dumps(description, indent=2) + "\n", encoding="utf-8")


def load_policy(folder: Path | str) -> nn.Module:
    """Return the policy that `save_policy` wrote, on the CPU and in eval mode.

    Raises:
        InvalidManifest: its factory cannot be imported: its module must be on PYTHONPATH.
        OSError, ValueError: the folder holds no such policy.
    """
    from safetensors.torch import load_model

    described = json.loads((Path(folder) / "policy.json").read_bytes())
    policy = build_policy(described["module"], described["actions"], described["options"], seed=0)
    load_model(policy, str(Path(folder) / "policy.safetensors"))
    return policy.eval()


def _imported(module: str) -> Callable[..., nn.Module]:
    expected = f"one of {', '.join(BUILTIN)}, or package.module:factory"
    name, _, attribute = module.partition(":")
    if not name or not attribute:
        raise InvalidManifest(f"{PATH}.module", module, expected)
    try:
        factory: Callable[..., nn.Module] = getattr(importlib.import_module(name), attribute)
    except (ImportError, AttributeError) as error:
        raise InvalidManifest(f"{PATH}.module", module, f"{expected}: {error}") from error
    return factory
