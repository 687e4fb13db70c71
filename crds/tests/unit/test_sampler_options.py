"""`trainer.with.sampler: {engine: vllm}`: the options, and the server's arguments made from them."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from swarmgame_api.errors import InvalidManifest
from swarmgame_api.load import loads_manifest
from swarmgame_api.sampler import VllmOptions, lora_rank_of

GAME = """
apiVersion: swarmgame.dev/v1alpha1
kind: SwarmGame
metadata: {name: sums}
spec:
  game: {maxRounds: 1, data: {use: text}, rewards: {use: exact}, trainer: {use: "%s", with: {sampler: %s}}}
"""


def options(sampler: str, use: str = "grpo") -> VllmOptions | None:
    return loads_manifest(GAME % (use, sampler)).spec.game.vllm


def test_the_options_are_read_for_every_trainer() -> None:
    for use in ("grpo", "mine:Trainer"):
        found = options("{engine: vllm, command: [/opt/vllm/bin/vllm], timeoutSeconds: 5}", use)
        assert found is not None
        assert (found.command, found.timeout_seconds, found.url) == (("/opt/vllm/bin/vllm",), 5, "")


@pytest.mark.parametrize("sampler", ["eager", "null", "{kind: mine}", "3", "{engine: mine}"])
def test_another_sampler_is_left_to_its_trainer(sampler: str) -> None:
    assert options(sampler, "mine:Trainer") is None


@pytest.mark.parametrize(
    ("sampler", "problem"),
    [
        ("{engine: vllm, urll: x}", 'sampler.urll is not a field; expected a field that exists; did you mean "url"?'),
        ("{engine: vllm, url: 'ftp://x'}", 'sampler.url is "ftp://x"; expected http://host:port, or nothing'),
        ("{engine: vllm, url: 'http://x:0'}", "sampler.url is"),
        ("{engine: vllm, url: 'http://user:secret@x'}", "sampler.url is"),
        (
            "{engine: vllm, timeoutSeconds: soon}",
            'sampler.timeoutSeconds is "soon"; expected an integer from 1 to 86,400',
        ),
        ("{engine: vllm, apiKeyEnv: KEY}", 'sampler.apiKeyEnv is "KEY"; expected nothing without url'),
        ("{engine: vllm, url: 'http://x', apiKeyEnv: sk-12}", "sampler.apiKeyEnv is"),
        (
            "{engine: vllm, url: 'http://x', arguments: [-q]}",
            'sampler.arguments is ["-q"]; expected nothing beside url',
        ),
        ("{engine: vllm, arguments: [--max_model_len=5]}", "expected no --max-model-len: set by other options"),
        (
            "{engine: vllm, resources: {limits: {gpu: many}}}",
            'sampler.resources.limits.gpu is "many"; expected a Kubernetes quantity',
        ),
    ],
)
def test_a_mistake_is_reported_with_its_path(sampler: str, problem: str) -> None:
    with pytest.raises(InvalidManifest) as caught:
        options(sampler)
    assert "spec.game.trainer.with." + problem.split(";")[0] in str(caught.value) or problem in str(caught.value)
    assert problem in str(caught.value)


def made(**fields: Any) -> VllmOptions:
    return VllmOptions(engine="vllm", **fields)


def test_the_servers_arguments_come_from_the_options() -> None:
    found = made(max_model_len=512, tensor_parallel_size=2, arguments=["--enforce-eager"]).server_arguments(
        "m", port=7, revision="r"
    )
    assert found[:2] == ["serve", "m"]
    assert {"--host=127.0.0.1", "--port=7", "--max-model-len=512", "--tensor-parallel-size=2", "--revision=r"} <= set(
        found
    )
    assert {"--logprobs-mode=processed_logprobs", "--generation-config=vllm"} <= set(found)
    assert found[-1] == "--enforce-eager"
    assert "--enable-lora" not in found
    assert "--max-model-len=9" in made().server_arguments("m", port=7, max_model_len=9)
    assert not [each for each in made().server_arguments("m", port=7) if each.startswith("--max-model-len")]


def test_the_authors_precision_overrides_the_default() -> None:
    assert "--dtype=float32" in made().server_arguments("m", port=1, dtype="float32")
    found = made(arguments=["--dtype", "bfloat16"]).server_arguments("m", port=1, dtype="float32")
    assert "--dtype=float32" not in found


@pytest.mark.parametrize(
    ("lora", "rank"), [(None, 0), ({}, 16), ({"rank": 3}, 3), ({"rank": 512}, 512), ({"rank": "x"}, 512), ("x", 0)]
)
def test_the_rank_of_adapters_is_read_without_knowing_the_trainer(lora: Any, rank: int) -> None:
    assert lora_rank_of({"lora": lora}) == rank


def test_every_rank_is_rounded_up_to_one_that_vllm_takes() -> None:
    for rank in (1, 2, 8, 9, 16, 17, 33, 300, 512):
        [found] = [
            each for each in made().server_arguments("m", port=1, lora_rank=rank) if each.startswith("--max-lora-rank")
        ]
        assert int(found.partition("=")[2]) >= rank


def test_options_never_change() -> None:
    with pytest.raises(ValidationError):
        made().url = "http://x"  # type: ignore[misc]
