"""The vLLM server beside a peer, for a game whose trainer has `sampler: {engine: vllm}` without a url.

It is a native sidecar. It starts after the initializer and before the peer, which waits for its startup probe, and
ends with the peer, so the Job still completes. It listens on loopback, which only the pod's containers share, because
its weight endpoints let a caller run code; so the probes run inside the container. Weights are passed in an emptyDir.
Its GPUs are set in `sampler.resources`. Invariant: the image is third-party, so it gets no token, no key and no
checkpoint.
"""

from __future__ import annotations

from swarmgame_api.sampler import SERVER_ENVIRONMENT, SERVER_URL, SERVER_WEIGHTS, VllmOptions, lora_rank_of
from swarmgame_operator.plan import storage
from swarmgame_operator.plan.game_context import GameContext
from swarmgame_operator.plan.plan_types import Manifest
from swarmgame_operator.plan.pod import container, mount, value, volume

CONTAINER = "vllm"
PORT = 8000
WEIGHTS = "/weights"
PERIOD_SECONDS = 10
STARTUP_WAIT_SECONDS = 540
_URL = f"http://127.0.0.1:{PORT}/health"
# Without a proxy that the container's environment names: the server is in the same pod.
_HEALTH = f"import urllib.request as r; r.build_opener(r.ProxyHandler({{}})).open({_URL!r}, timeout=4)"
_WAIT = """\
import sys, time, urllib.request
url, end = sys.argv[1], time.monotonic() + float(sys.argv[2])
here = urllib.request.build_opener(urllib.request.ProxyHandler({}))
while True:
    try:
        here.open(url, timeout=4)
        break
    except OSError:
        if time.monotonic() > end:
            sys.exit("the server does not answer yet")
        time.sleep(0.5)
"""


def sampler_container(game: GameContext, options: VllmOptions) -> Manifest:
    """Return the sidecar: an init container with restartPolicy Always."""
    model = game.spec.model
    uri = model.uri if model is not None else ""
    name = uri.removeprefix("hf://").removeprefix("file://")
    rank = lora_rank_of(game.spec.game.trainer.with_)
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
        "startupProbe": startup_probe(options.startup_seconds),
        "livenessProbe": {**probe, "failureThreshold": 6},
    }
    image = options.image or game.defaults.sampler_image
    return container(game, CONTAINER, image, own_resources=options.resources, **fields)


def startup_probe(seconds: int) -> Manifest:
    """Return a probe that waits inside the container until the server answers. Each failure of a probe is a Warning
    event, so one that asks again and again warns at every start; this one only if the start takes minutes.

    Args:
        seconds: how long the server may take.
    """
    attempts = -(-seconds // STARTUP_WAIT_SECONDS)
    wait = -(-seconds // attempts)
    return {
        "exec": {"command": ["python3", "-c", _WAIT, _URL, str(wait)]},
        "periodSeconds": PERIOD_SECONDS,
        "failureThreshold": attempts,
        "timeoutSeconds": wait + 30,
    }


def sampler_volumes() -> list[Manifest]:
    """Return the server's volumes: its own scratch space, and the folder for weights."""
    return [volume("vllm-tmp", emptyDir={}), volume("weights", emptyDir={})]


def sampler_mounts() -> list[Manifest]:
    """Return the peer's mount of the weights, at the same path as the server's."""
    return [mount("weights", WEIGHTS)]


def sampler_environment() -> list[Manifest]:
    """Return the peer's variables about its server."""
    return [value(SERVER_URL, f"http://127.0.0.1:{PORT}"), value(SERVER_WEIGHTS, WEIGHTS)]


def _environment(uri: str) -> list[Manifest]:
    found = [value(name, text) for name, text in SERVER_ENVIRONMENT.items()]
    # The image expects root and a home; PyTorch reads the user's name, and this user is not in the image.
    found += [
        value("HOME", "/tmp"),
        value("USER", "vllm"),
        value("XDG_CACHE_HOME", "/tmp/cache"),
        value("VLLM_NO_USAGE_STATS", "1"),
    ]
    if uri.startswith("hf://"):
        found += [value("HF_HOME", f"{storage.CACHE}/huggingface"), value("HF_HUB_OFFLINE", "1")]
    return found
