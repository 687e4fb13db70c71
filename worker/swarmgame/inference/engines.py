"""Sampler engines: those that a manifest can name under `sampler`, and the function that makes the named one.

A new engine is a module that implements `Sampler`, a name in `SamplerChoice`, and a branch in `make_sampler`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Discriminator, Tag

from swarmgame.errors import InvalidManifest
from swarmgame_api.sampler import VllmOptions

if TYPE_CHECKING:
    from swarmgame.inference.sampler import Sampler
    from swarmgame.trainer.grpo.policy import Policy


def _type_of_choice(value: object) -> str:
    return "VllmOptions" if isinstance(value, Mapping | VllmOptions) else "name"


SamplerChoice = Annotated[
    Annotated[Literal["auto", "eager", "cudagraph"], Tag("name")] | Annotated[VllmOptions, Tag("VllmOptions")],
    Discriminator(_type_of_choice),
]
"""A name, or the options of a vLLM server."""


def make_sampler(
    policy: Policy, choice: Literal["auto", "eager", "cudagraph"] | VllmOptions, *, longest: int
) -> Sampler:
    """Return the sampler that the manifest names.

    Args:
        longest: prompt and completion together, in tokens.

    Raises:
        InvalidManifest: graphs where there is no CUDA device; a server that cannot be started.
    """
    if isinstance(choice, VllmOptions):
        from swarmgame.inference.vllm_start import vllm_sampler

        return vllm_sampler(policy, choice, policy.context, longest=longest)
    # Imported here, since the trainer's configuration imports this module and must not load torch.
    from swarmgame.inference.continuous_batching import EngineSampler
    from swarmgame.inference.eager import EagerSampler

    on_cuda = policy.model.device.type == "cuda"
    if choice == "cudagraph" and not on_cuda:
        raise InvalidManifest(
            "spec.game.trainer.with.sampler",
            choice,
            f"eager or auto: this peer computes on {policy.model.device}, without CUDA graphs",
        )
    sampler = EngineSampler if on_cuda and choice != "eager" else EagerSampler
    return sampler(policy.model, policy.eos_token_ids, policy.pad_token_id)
