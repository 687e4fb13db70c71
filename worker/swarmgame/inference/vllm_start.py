"""From a trainer's configuration to a sampler of a vLLM server: which server, which model, which folder.

The server is, in this order: the manifest's `url`; the one that the operator put beside this peer
(`ComponentContext.sampler_url`); one that this peer starts.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from swarmgame.errors import InvalidManifest
from swarmgame.inference.vllm import VllmSampler
from swarmgame.inference.vllm_client import VllmClient
from swarmgame.inference.vllm_process import PATH, VllmProcess
from swarmgame_api.sampler import VllmOptions

if TYPE_CHECKING:
    from swarmgame.game.components import ComponentContext
    from swarmgame.trainer.grpo.policy import Policy


def vllm_sampler(policy: Policy, options: VllmOptions, context: ComponentContext, *, longest: int) -> VllmSampler:
    """Return a sampler of this policy; a server of our own is starting when this returns.

    Args:
        longest: prompt and completion together, in tokens.

    Raises:
        InvalidManifest: there is no vLLM to start, or no API key under the name that the manifest gives.
    """
    api_key = _api_key(options)
    url = options.url or context.sampler_url
    lora = policy.config.lora
    process = None
    if not url and context.ranks.rank == 0:
        log = _directory(context) / "vllm.log"
        dtype = str(policy.model.dtype).removeprefix("torch.")

        def arguments(port: int) -> list[str]:
            return options.server_arguments(
                policy.source.name,
                port=port,
                revision=policy.source.revision,
                lora_rank=lora.rank if lora is not None else 0,
                max_model_len=longest,
                dtype=dtype,
            )

        process = VllmProcess(options, arguments, log)

    def client(address: str) -> VllmClient:
        return VllmClient(
            address,
            eos_token_ids=policy.eos_token_ids,
            vocabulary=policy.vocabulary,
            timeout_seconds=options.timeout_seconds,
            api_key=api_key,
        )

    return VllmSampler(
        options,
        client,
        policy.save_weights,
        adapters=lora is not None,
        folder=_weights_folder(options, context),
        longest=longest,
        ranks=context.ranks,
        process=process,
        url=url,
    )


def _weights_folder(options: VllmOptions, context: ComponentContext) -> Path:
    if options.weights_folder:
        return Path(options.weights_folder)
    if context.sampler_weights is not None:
        return context.sampler_weights
    folder = _directory(context) / "weights"
    if context.ranks.rank == 0:
        shutil.rmtree(folder, ignore_errors=True)  # what a peer that was killed left behind
    return folder


def _directory(context: ComponentContext) -> Path:
    """A folder of this peer's own; outside of a run, one that the system forgets."""
    if context.directory is not None:
        return context.directory
    return Path(tempfile.gettempdir()) / f"swarmgame-vllm-{os.getuid()}-{os.getpid()}"


def _api_key(options: VllmOptions) -> str:
    if not options.api_key_env:
        return ""
    key = os.environ.get(options.api_key_env, "")
    if not key:
        raise InvalidManifest(
            f"{PATH}.apiKeyEnv",
            options.api_key_env,
            "the name of an environment variable that is set, with the server's key",
        )
    return key
