"""Sharding of a policy over the ranks of a peer, with torch's FSDP2: whether, and how.

Each rank holds a part of every weight in float32, of its gradient and of its moments. A decoder layer's weights are
gathered, in the type that computes, before its forward and its backward pass, and are freed after each; its gradients
are added up over the ranks and divided in one call. Sums, not means: the loss has the denominators of the batch.

What samples is a complete copy of the model on each rank (`Policy.model`).
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from swarmgame.errors import InvalidManifest
from swarmgame.game.components import ComponentContext
from swarmgame.game.ranks import Ranks
from swarmgame.trainer.grpo.config import GRPOConfig

logger = logging.getLogger(__name__)

PATH = "spec.game.trainer.with.sharding"
MEMORY_SHARE = 0.7
"""Share of a device's memory that training on it may take before `auto` shards: the rest is for activations, and for
keys and values of rollouts.
"""


def shall_shard(config: GRPOConfig, context: ComponentContext, model: nn.Module) -> bool:
    """Decide whether the policy is sharded. A collective call; the same on every rank.

    Args:
        model: as it was loaded, without adapters.

    Raises:
        InvalidManifest: `full`, and the model cannot be sharded.
    """
    ranks = context.ranks
    if ranks.size == 1:
        if config.sharding == "full":
            logger.warning(
                "sharding: full has no effect: this peer has one process, which holds the complete model. "
                "spec.peers.processesPerPeer is their number"
            )
        return False
    if config.sharding == "none":
        return False
    if config.sharding == "auto":
        device = torch.device(context.device)
        if device.type != "cuda":
            return False
        # Adapters over a model that samples in the same process: the complete copy is there in any case.
        if config.lora is not None and not config.has_external_engine:
            return False
        memory = torch.cuda.get_device_properties(device).total_memory
        fits = bytes_of_training(model, adapters=config.lora is not None) <= MEMORY_SHARE * memory
        if all(payload == b"\x01" for payload in ranks.gather(bytes([fits]))):
            return False
    if problem := _problem(model, config):
        if config.sharding == "full":
            raise InvalidManifest(PATH, "full", f"none: {problem}")
        logger.warning("the policy is not sharded, although it does not fit one device well: %s", problem)
        return False
    logger.info("the policy is sharded: each of %d processes holds a part of it, and of its optimizer", ranks.size)
    return True


def doubts_of(config: GRPOConfig, processes: int | None) -> tuple[str, ...]:
    """Return what `sharding: full` probably does not do as meant, as sentences."""
    if config.sharding != "full":
        return ()
    found = []
    if processes == 1:
        found.append(
            f"{PATH} is full, but spec.peers.processesPerPeer is 1: sharding has no effect, since the only process "
            "of a peer holds the complete model"
        )
    if config.lora is not None and not config.has_external_engine:
        found.append(
            f"{PATH} is full with lora: each process keeps the complete base model to sample from, and its part of it "
            "to train on, which is more memory than with none. It saves memory where vLLM samples"
        )
    return tuple(found)


def passes_of_others(own: int, ranks: Ranks) -> int:
    """Return how many passes of other ranks this one has no micro-batch for. A collective call.

    Args:
        own: micro-batches of this rank.
    """
    return max(int(payload) for payload in ranks.gather(b"%d" % own)) - own


def too_large(tokens: int) -> InvalidManifest:
    """Return the error of a rank without memory for a micro-batch of so many tokens."""
    return InvalidManifest(
        "spec.game.trainer.with.tokensPerMicroBatch",
        tokens,
        f"fewer, such as {max(1, tokens // 2)}: the device has no memory for a micro-batch of so many. That of a "
        "sharded policy is not halved by itself, because all processes of a peer make the same passes",
    )


def bytes_of_training(model: nn.Module, *, adapters: bool) -> int:
    """Return the memory of weights, gradients and optimizer on a rank that is not sharded.

    In bfloat16 that is 24 bytes a parameter: the weight (2) and its copy in float32 (4), two moments (8), the gradient
    (2), its sum over micro-batches (4) and over ranks (4). In float32 it is 20. Under adapters it is the weight alone.
    """
    total = 0
    for parameter in model.parameters():
        wide = parameter.dtype == torch.float32
        each = parameter.element_size() if adapters else 20 if wide else 16 + 4 * parameter.element_size()
        total += each * parameter.numel()
    return total


def shard(root: nn.Module, layers: Sequence[nn.Module], device: torch.device, *, adapters: bool) -> None:
    """Shard a model in place: each of its layers is gathered by itself, and the rest together. A collective call.

    Trained parameters become float32; what computes with them keeps their type of now. Afterwards parameters have the
    same names, and are DTensors on the device.

    Args:
        root: called as a module in each pass, and its layers inside it: that is when their weights are gathered.
        layers: modules inside the root.
        adapters: parameters are of several types, and each computes in its own.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    mesh = init_device_mesh(device.type, (torch.distributed.get_world_size(),))
    trained = {parameter.dtype for parameter in root.parameters() if parameter.requires_grad}
    computing = None if adapters or not trained else next(iter(trained))
    policy = MixedPrecisionPolicy(param_dtype=computing, reduce_dtype=torch.float32)
    for module in [*layers, root]:
        for parameter in module.parameters():
            if parameter.requires_grad and parameter.dtype != torch.float32:
                parameter.data = parameter.data.float()
        # The root too: weights that stay gathered after a pass without gradient would be old in the next step.
        sharded: Any = fully_shard(module, mesh=mesh, mp_policy=policy, reshard_after_forward=True)
        sharded.set_gradient_divide_factor(1.0)
        sharded.set_force_sum_reduction_for_comms(True)  # gloo has no other
    # FSDP2 gives parts their final memory at the first use; the optimizer works on that memory.
    whole: Any = root
    whole.unshard()
    whole.reshard()


def decoder_layers(model: Any) -> list[nn.Module]:
    """Return the layers of a transformers model that it names as indivisible, inner ones first."""
    names = set(getattr(model, "_no_split_modules", None) or ())
    return [module for module in reversed(list(model.modules())) if type(module).__name__ in names]


def _problem(model: nn.Module, config: GRPOConfig) -> str:
    """Return why the model cannot be sharded; empty where it can."""
    from torch.distributed.fsdp import FSDPModule

    if not hasattr(FSDPModule, "set_force_sum_reduction_for_comms"):
        return f"FSDP2 of torch {torch.__version__} cannot add up gradients over gloo: a newer torch can"
    if any(parameter.dim() == 0 for parameter in model.parameters()):
        return "the model has parameters without dimensions, which have no rows to divide"
    types = sorted({str(parameter.dtype).removeprefix("torch.") for parameter in model.parameters()})
    if config.lora is None and len(types) > 1:
        return f"the model's weights are of several types ({', '.join(types)}), and FSDP2 gathers trained ones as one"
    return ""
