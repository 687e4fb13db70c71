"""Small policies by name: networks from an observation to one logit an action, for games without a language model.

Any other module from observations [B, …] to logits [B, A] can be named as `package.module:factory`.
"""

from __future__ import annotations

import importlib
import itertools
import json
from collections.abc import Callable, Mapping, Sequence
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from swarmgame.errors import BadData, InvalidManifest
from swarmgame.models.noise import remove_noise
from swarmgame.user_code import describe, kind_of

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
        except Exception as error:
            if _is_of_the_device(error):
                raise
            found = describe(error)
            raise InvalidManifest(
                f"{PATH}.options", dict(options), f"options that {module} takes ({found}){found.below}"
            ) from error
    if not isinstance(network, nn.Module):
        raise InvalidManifest(
            f"{PATH}.module", module, f"a factory of a torch.nn.Module; it made a {type(network).__name__}"
        )
    if not any(parameter.requires_grad for parameter in network.parameters()):
        raise InvalidManifest(f"{PATH}.module", module, "a module with parameters that learn")
    return network


def check_policy(
    module: str, actions: int, options: Mapping[str, Any], observation: Tensor | None, *, load: bool
) -> list[str]:
    """Build a policy, call it with one observation of the game, and return what `quiet` says.

    Args:
        observation: None where the game has none.
        load: also build a policy of the author's own; a builtin one is tried without memory for its weights.

    Raises:
        InvalidManifest: it cannot be built, or does not take the observation.
    """
    if not load and module not in BUILTIN:
        return []
    with torch.device("meta" if module in BUILTIN else "cpu"), torch.no_grad():
        policy = build_policy(module, actions, options, 0)
        off = quiet(policy)
        if observation is not None:
            batch = observation.unsqueeze(0).to("meta" if module in BUILTIN else "cpu")
            logits_of(policy, batch, module, actions, options)
    return off


def stacked(observations: Sequence[Tensor]) -> Tensor:
    """Return observations as one batch [B, …].

    Raises:
        BadData: they have different shapes.
    """
    shape = observations[0].shape
    other = next((each.shape for each in observations if each.shape != shape), None)
    if other is not None:
        raise BadData(
            f"payloads of one round have the shapes {tuple(shape)} and {tuple(other)}; the policy takes a batch of "
            "equal ones. Bring the payloads of the data's prompts to one shape, by padding or scaling"
        )
    return torch.stack(list(observations))


def logits_of(policy: nn.Module, observations: Tensor, module: str, actions: int, options: Mapping[str, Any]) -> Tensor:
    """Return the logits [B, A] of observations [B, …].

    Args:
        module, options: of `build_policy`, for messages.

    Raises:
        InvalidManifest: the policy does not take observations of this shape, or returns something else.
    """
    logits: object = called(policy, observations, module, options)
    expected = (len(observations), actions)
    if not isinstance(logits, Tensor) or tuple(logits.shape) != expected:
        found = tuple(logits.shape) if isinstance(logits, Tensor) else kind_of(logits)
        if module in BUILTIN:
            raise _misfit(module, options, observations, f"its output has shape {found}, not {expected}")
        raise InvalidManifest(f"{PATH}.module", module, f"a module whose output has shape {expected}, not {found}")
    return logits


def called(policy: nn.Module, observations: Tensor, module: str, options: Mapping[str, Any]) -> Any:
    """Return what a policy returns for observations [B, …].

    Raises:
        InvalidManifest: it fails, as where it is made for observations of another shape; with the author's lines.
    """
    try:
        return policy(observations)
    except Exception as error:
        if _is_of_the_device(error):
            raise
        found = describe(error)
        if module in BUILTIN:
            raise _misfit(module, options, observations, found.message) from error
        expected = f"a module that takes the game's observations, of shape {tuple(observations.shape[1:])}"
        raise InvalidManifest(f"{PATH}.module", module, f"{expected}; it failed: {found}{found.below}") from error


def _misfit(module: str, options: Mapping[str, Any], observations: Tensor, reason: str) -> InvalidManifest:
    shape = list(observations.shape[1:])
    fitting = f"{{inputs: {prod(shape)}}}" if module == "mlp" else f"{{shape: {shape}}}"
    if module == "cnn" and len(shape) not in (2, 3):
        fitting = "two or three dimensions of a picture; take module: mlp for other observations"
    expected = f"options for the game's observations, whose shape is {tuple(shape)}, such as {fitting} ({reason})"
    return InvalidManifest(f"{PATH}.options", dict(options), expected)


def _is_of_the_device(error: Exception) -> bool:
    """Return whether memory or a device failed, which no option of the policy mends."""
    text = str(error).lower()
    return isinstance(error, MemoryError | torch.cuda.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and any(word in text for word in ("cuda", "cublas", "cudnn", "memory"))
    )


def quiet(policy: nn.Module) -> list[str]:
    """Put a policy into evaluation mode for good, without any noise, and return what of it is off, as sentences."""
    off = sorted(
        {
            type(module).__name__
            for module in policy.modules()
            if isinstance(module, nn.modules.batchnorm._BatchNorm | nn.modules.dropout._DropoutNd)
            or (isinstance(module, nn.RNNBase) and module.dropout > 0)
        }
    )
    remove_noise(policy)
    policy.eval()
    for module in policy.modules():
        # CUDA's recurrent layers have no backward pass in evaluation mode. Without dropout the modes are the same.
        module.training = isinstance(module, nn.RNNBase)
    if not off:
        return []
    return [
        f"the policy has {', '.join(off)}, and is sampled and trained in evaluation mode: dropout is off, and "
        "statistics of batches stay as they are"
    ]


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
    except Exception as error:
        # An author's module may raise anything while it is imported.
        found = describe(error)
        raise InvalidManifest(f"{PATH}.module", module, f"{expected} ({found}){found.below}") from error
    return factory
