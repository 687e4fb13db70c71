"""The generation server beside a peer: a native sidecar that runs vLLM, for a game whose trainer says `sampler:
{engine: vllm}` without a url.

It starts behind the initializer and before the peer, which waits for its startup probe, and it ends with the peer, so
that a Job still completes. It listens on loopback, which the containers of a pod share and nobody else reaches: its
endpoints for weights let their caller run code. That is why the probes run inside the container. Weights are handed
over in an emptyDir. GPUs are given to containers, so the server's stand in `sampler.resources`. Invariant: the image is
somebody else's, so it gets no token, no key and no checkpoint.
"""

from __future__ import annotations

from swarmgame_api.sampler import SERVER_ENVIRONMENT, SERVER_URL, SERVER_WEIGHTS, VllmOptions, lora_rank_of
from swarmgame_operator.plan import storage
from swarmgame_operator.plan.outcome import Manifest
from swarmgame_operator.plan.pod import container, mount, value, volume, with_memory_requested
from swarmgame_operator.plan.setting import Setting

CONTAINER = "vllm"
PORT = 8000
WEIGHTS = "/weights"
PERIOD_SECONDS = 10
_HEALTH = f"import urllib.request as r; r.urlopen('http://127.0.0.1:{PORT}/health', timeout=4)"


def sampler_container(setting: Setting, options: VllmOptions) -> Manifest:
    """The sidecar, an init container that goes on."""
    model = setting.spec.model
    uri = model.uri if model is not None else ""
    name = uri.removeprefix("hf://").removeprefix("file://")
    rank = lora_rank_of(setting.spec.game.trainer.with_)
    probe = {"exec": {"command": ["python3", "-c", _HEALTH]}, "periodSeconds": PERIOD_SECONDS, "timeoutSeconds": 5}
    fields: Manifest = {
        "restartPolicy": "Always",
        "command": ["vllm"],
        "args": options.server_arguments(
            name, port=PORT, revision=model.revision if model is not None else "", lora_rank=rank
        ),
        "env": _environment(uri),
        "volumeMounts": [
            mount("vllm-tmp", "/tmp"),
            mount("cache", storage.CACHE, readOnly=True),
            mount("shm", "/dev/shm"),
            mount("weights", WEIGHTS, readOnly=True),
        ],
        "startupProbe": {**probe, "failureThreshold": max(1, -(-options.startup_seconds // PERIOD_SECONDS))},
        "livenessProbe": {**probe, "failureThreshold": 6},
    }
    if resources := with_memory_requested(options.resources.limits, options.resources.requests):
        fields["resources"] = resources
    return container(setting, CONTAINER, options.image or setting.defaults.sampler_image, **fields)


def sampler_volumes() -> list[Manifest]:
    """What the server needs: scratch of its own, and the folder in which it is given weights."""
    return [volume("vllm-tmp", emptyDir={}), volume("weights", emptyDir={})]


def sampler_mounts() -> list[Manifest]:
    """Where the peer writes the weights: the same path as the server's."""
    return [mount("weights", WEIGHTS)]


def sampler_environment() -> list[Manifest]:
    """What the peer is told of its server."""
    return [value(SERVER_URL, f"http://127.0.0.1:{PORT}"), value(SERVER_WEIGHTS, WEIGHTS)]


def _environment(uri: str) -> list[Manifest]:
    found = [value(name, text) for name, text in SERVER_ENVIRONMENT.items()]
    # The image expects root and a home; PyTorch asks who the user is, and there is no such user in the image.
    found += [
        value("HOME", "/tmp"),
        value("USER", "vllm"),
        value("XDG_CACHE_HOME", "/tmp/cache"),
        value("VLLM_NO_USAGE_STATS", "1"),
    ]
    if uri.startswith("hf://"):
        found += [value("HF_HOME", f"{storage.CACHE}/huggingface"), value("HF_HUB_OFFLINE", "1")]
    return found
