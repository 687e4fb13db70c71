"""`sampler: {engine: vllm, …}` under a trainer's `with`: generation by a vLLM server, and how it is started.

The worker reads these options from its trainer's configuration, the operator from `spec.game.trainer.with`, and both
start a server with the same arguments (`server_arguments`). The rest of `with` belongs to the trainer. The arguments
are those of vLLM 0.33.0. Invariant: no secret is in a manifest; `apiKeyEnv` is the name of a variable.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import Field, JsonValue, StringConstraints, ValidationError, model_validator
from pydantic_core import PydanticCustomError

from swarmgame_api.base import Model
from swarmgame_api.errors import Problem
from swarmgame_api.peers import Resources
from swarmgame_api.quantities import Expected, OptionalImage, has_possible_port
from swarmgame_api.validation_messages import explain

DEFAULT_IMAGE = "docker.io/vllm/vllm-openai:v0.33.0"
"""Image of the server that the operator puts beside a peer, unless the manifest or the installation names one."""

SERVER_ENVIRONMENT: Mapping[str, str] = {"VLLM_SERVER_DEV_MODE": "1", "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1"}
"""Opens the server's endpoints for weights. They let every client run code, so a server that is started here listens
only on loopback."""

SERVER_URL, SERVER_WEIGHTS = "SWARMGAME_SAMPLER_URL", "SWARMGAME_SAMPLER_WEIGHTS"
"""Environment of a peer: the generation server that the operator put beside it, and the folder that both see."""

BASE_MODEL = "base"
"""Name under which a server that is started here serves the model itself. Adapters have their own names."""

DEFAULT_LORA_RANK = 16
_LORA_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""The only values of vLLM's --max-lora-rank."""
LARGEST_LORA_RANK = _LORA_RANKS[-1]

_RESERVED = (
    "--model", "--host", "--port", "--uds", "--served-model-name", "--logprobs-mode", "--generation-config",
    "--max-model-len", "--gpu-memory-utilization", "--tensor-parallel-size", "-tp", "--enable-lora", "--max-loras",
    "--max-lora-rank", "--revision", "--api-key",
)  # fmt: skip
"""Arguments that other options set, or that generation depends on."""

Argument = Annotated[
    str,
    StringConstraints(min_length=1, max_length=1024),
    Expected("an argument of at most 1,024 characters, such as --enforce-eager"),
]


def _names_of(arguments: tuple[str, ...]) -> set[str]:
    return {argument.partition("=")[0].replace("_", "-") for argument in arguments}


class VllmOptions(Model):
    """A vLLM server that generates, in its own process."""

    engine: Literal["vllm"]
    """`vllm`: completions come from vLLM's HTTP server, and every update is loaded into it."""
    url: Annotated[
        str,
        StringConstraints(pattern=r"^(https?://[A-Za-z0-9.\[\]:_-]+(/[A-Za-z0-9._/-]*)?)?$", max_length=512),
        Expected("http://host:port, or nothing"),
    ] = ""
    """A running server that is used by this peer only, because it loads this peer's weights. Empty: with `swarmgame
    run` every peer starts one, and the operator puts one into every peer's pod."""
    weights_folder: Annotated[
        str, StringConstraints(pattern=r"^(/[A-Za-z0-9._/-]+)?$", max_length=255), Expected("an absolute path below /")
    ] = ""
    """With `url`: a folder that the peer and the server both see under this path; the peer writes the weights there.
    Empty: a folder of the peer, which only a server on the same machine sees."""
    api_key_env: Annotated[
        str,
        StringConstraints(pattern=r"^([A-Za-z_][A-Za-z0-9_]*)?$", max_length=253),
        Expected("the name of an environment variable, or nothing"),
    ] = ""
    """With `url`: the name of the environment variable that holds the server's API key; never the key itself. Empty:
    the server needs no key."""
    timeout_seconds: Annotated[int, Field(ge=1, le=86_400)] = 600
    """Longest wait for the completions of one prompt, or for the loading of weights."""
    startup_seconds: Annotated[int, Field(ge=1, le=86_400)] = 1800
    """Longest wait for the server to be ready."""
    command: Annotated[tuple[Argument, ...], Field(min_length=1, max_length=16, strict=False)] = ("vllm",)
    """`swarmgame run`: the program that is started, found on PATH, and arguments that come before `serve`. A path
    leads to a vLLM in an environment of its own: `[/opt/vllm/bin/vllm]`."""
    arguments: Annotated[tuple[Argument, ...], Field(max_length=64, strict=False)] = ()
    """More arguments of `vllm serve`, for a server that is started: `[--enforce-eager, --dtype=bfloat16]`."""
    max_model_len: Annotated[int, Field(ge=2, le=16_777_216)] | None = None
    """Longest prompt and completion together. Absent: the trainer's largest request (`swarmgame run`), or the model's
    own limit (operator)."""
    gpu_memory_utilization: Annotated[float, Field(gt=0, le=1)] = 0.4
    """Share of a GPU's memory that the server takes. A peer that trains on the same GPU needs the rest; where the
    server has a GPU to itself, 0.9.
    """
    tensor_parallel_size: Annotated[int, Field(ge=1, le=64)] = 1
    """GPUs over which the server splits the model."""
    image: OptionalImage = ""
    """Operator: the server's image. Empty: the operator's default."""
    resources: Resources = Resources()
    """Operator: what the server's container may use. Kubernetes gives GPUs to containers and not to pods, so a GPU
    belongs here and another one under `peers.resources`."""

    @model_validator(mode="after")
    def _fit_together(self) -> Self:
        broken: list[tuple[str, object, str]] = []
        if not self.url:
            for field, value in (("weightsFolder", self.weights_folder), ("apiKeyEnv", self.api_key_env)):
                if value:
                    broken.append((field, value, "nothing without url: it belongs to a server that runs already"))
        elif not has_possible_port(self.url):
            broken.append(("url", self.url, "http://host:port, with a port from 1 to 65535"))
        if self.url and self.arguments:
            broken.append(
                ("arguments", list(self.arguments), "nothing beside url: a server that runs already has its own")
            )
        if taken := sorted(_names_of(self.arguments) & set(_RESERVED)):
            broken.append(
                ("arguments", list(self.arguments), f"no {', '.join(taken)}: set by other options, or reserved")
            )
        if broken:
            raise PydanticCustomError(
                "rules", "expected {summary}", {"summary": "; ".join(each[2] for each in broken), "broken": broken}
            )
        return self

    def server_arguments(
        self,
        model: str,
        *,
        port: int,
        revision: str = "",
        lora_rank: int = 0,
        max_model_len: int | None = None,
        dtype: str = "",
    ) -> list[str]:
        """Return the arguments behind the program's name.

        Args:
            model: a folder or a name on the hub.
            lora_rank: of the adapters that will be loaded; 0 where all weights are trained.
            max_model_len: used where the manifest has none; None leaves it to the model.
            dtype: of the weights; empty leaves it to the model.
        """
        found = ["serve", model, "--host=127.0.0.1", f"--port={port}", f"--served-model-name={BASE_MODEL}"]
        # The model's generation_config.json would change what is sampled; processed log-probabilities are those at the
        # sampling temperature.
        found += ["--generation-config=vllm", "--logprobs-mode=processed_logprobs"]
        found += [
            f"--gpu-memory-utilization={self.gpu_memory_utilization:g}",
            f"--tensor-parallel-size={self.tensor_parallel_size}",
        ]
        longest = self.max_model_len or max_model_len
        if longest is not None:
            found.append(f"--max-model-len={longest}")
        if revision:
            found.append(f"--revision={revision}")
        if dtype and "--dtype" not in _names_of(self.arguments):
            found.append(f"--dtype={dtype}")
        if lora_rank:
            # Two, because the new adapter is loaded before the old one is removed.
            allowed = next(rank for rank in _LORA_RANKS if rank >= lora_rank)
            found += ["--enable-lora", "--max-loras=2", f"--max-lora-rank={allowed}"]
        return [*found, *self.arguments]


def vllm_options(block: Mapping[str, JsonValue]) -> VllmOptions | None:
    """Return the options under `sampler` of a trainer's `with`; None with another sampler.

    Raises:
        ValidationError: the options are invalid.
    """
    sampler = block.get("sampler")
    if not is_vllm(sampler):
        return None
    return VllmOptions.model_validate_json(json.dumps(sampler), by_alias=True, by_name=False)


def sampler_problems(block: Mapping[str, JsonValue]) -> tuple[Problem, ...]:
    """Return the problems of these options, with paths that begin at `sampler`."""
    try:
        vllm_options(block)
    except ValidationError as error:
        return explain(VllmOptions, error.errors(include_url=False), "sampler")
    return ()


def lora_rank_of(block: Mapping[str, JsonValue]) -> int:
    """Return the rank of the adapters in a trainer's `with`; 0 where all weights are trained."""
    lora: Any = block.get("lora")
    if not isinstance(lora, Mapping):
        return 0
    rank = lora.get("rank", DEFAULT_LORA_RANK)
    return rank if isinstance(rank, int) and 1 <= rank <= LARGEST_LORA_RANK else LARGEST_LORA_RANK


def is_vllm(sampler: object) -> bool:
    """Return whether a value under `sampler` is read here. A custom trainer may use that key for something else."""
    return isinstance(sampler, Mapping) and sampler.get("engine") == "vllm"
