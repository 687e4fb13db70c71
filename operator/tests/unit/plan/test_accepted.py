"""Accepted: missing objects are named, and nothing is created before all exist."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from plan_fixtures import DEFAULTS, EMPTY, condition, game, reported, running, settled, valid_game, waiting_pod

from swarmgame_operator.plan import Plan, build_plan, references
from swarmgame_operator.snapshot import DryRunFacts, Observed

EXTERNAL: dict[str, Any] = {
    "coordination": {
        "mode": "External",
        "chainId": 1,
        "contractAddress": "0x" + "00" * 20,
        "rpcSecretRef": {"name": "rpc"},
        "walletSecretRef": {"name": "wallet"},
    }
}
OUTSIDERS: dict[str, Any] = {"communication": {"backend": "TorchDistributed"}, "bootnode": {"expose": "NodePort"}}
HUB: dict[str, Any] = {"model": {"uri": "hf://a/b", "secretRef": {"name": "hub"}}}
VARIABLE = {"peers": {"env": [{"name": "A", "valueFrom": {"secretKeyRef": {"name": "mine", "key": "a"}}}]}}
OPTIONAL = {
    "peers": {"env": [{"name": "A", "valueFrom": {"secretKeyRef": {"name": "mine", "key": "a", "optional": True}}}]}
}
FROM_MAP = {"peers": {"env": [{"name": "A", "valueFrom": {"configMapKeyRef": {"name": "mine", "key": "a"}}}]}}
OWN_KEYS = {"identity": {"secretName": "keys"}, "peers": {"replicas": 2}}
GAME = {"maxRounds": 1, "data": {"use": "a"}, "rewards": {"use": "a"}, "trainer": {"use": "a"}}
MODULE = {"game": {**GAME, "modules": [{"name": "m", "image": {"reference": "example.dev/m:1"}, "mountPath": "/m"}]}}


def referring(source: str, name: str) -> dict[str, Any]:
    """Return a spec with a variable that refers to an object of this name."""
    return {"peers": {"env": [{"name": "A", "valueFrom": {source: {"name": name, "key": "a"}}}]}}


def update(spec: dict[str, Any], seen: Observed = EMPTY) -> tuple[str, str]:
    accepted = condition(build_plan(game(spec), seen, DEFAULTS), "Accepted")
    assert accepted is not None
    return accepted.reason, accepted.message


def having(**found: Any) -> Observed:
    return replace(EMPTY, **found)


TABLE: list[tuple[dict[str, Any], Observed, str, str]] = [
    (HUB, having(secrets={"hub": frozenset({"password"})}), "SecretNotFound", "the key token of the Secret hub"),
    (HUB, having(secrets={"hub": frozenset({"token"})}), "Valid", ""),
    (EXTERNAL, EMPTY, "SecretNotFound", "the Secret rpc; the Secret wallet"),
    (
        EXTERNAL,
        having(secrets={"rpc": frozenset({"url"}), "wallet": frozenset()}),
        "SecretNotFound",
        "the key key of the Secret wallet",
    ),
    (EXTERNAL, having(secrets={"rpc": frozenset({"url"}), "wallet": frozenset({"key"})}), "Valid", ""),
    (VARIABLE, EMPTY, "SecretNotFound", "the Secret mine"),
    (VARIABLE, having(secrets={"mine": frozenset({"a"})}), "Valid", ""),
    (OPTIONAL, EMPTY, "Valid", ""),
    (FROM_MAP, EMPTY, "InvalidPodTemplate", "the ConfigMap mine"),
    (FROM_MAP, having(config_maps={"mine": frozenset({"a"})}), "Valid", ""),
    (
        OWN_KEYS,
        having(secrets={"keys": frozenset({"peer-0.key"})}),
        "SecretNotFound",
        "the key peer-1.key of the Secret keys",
    ),
    (OWN_KEYS, having(secrets={"keys": frozenset({"peer-0.key", "peer-1.key"})}), "Valid", ""),
    ({"storage": {"cache": {"claimName": "shared"}}}, EMPTY, "InvalidPodTemplate", "PersistentVolumeClaim shared"),
    ({"storage": {"cache": {"claimName": "shared"}}}, having(claims=frozenset({"shared"})), "Valid", ""),
    (OUTSIDERS, EMPTY, "InvalidGame", 'spec.bootnode.expose is "NodePort"; expected ClusterIP'),
    (MODULE, having(cluster_version=(1, 34)), "UnsupportedCluster", "1.35"),
    (MODULE, having(cluster_version=(1, 35)), "Valid", ""),
    ({}, having(cluster_version=(2, 0)), "Valid", ""),
]


@pytest.mark.parametrize(("spec", "seen", "reason", "text"), TABLE)
def test_a_game_is_accepted_when_everything_that_it_names_exists(
    spec: dict[str, Any], seen: Observed, reason: str, text: str
) -> None:
    found, message = update(spec, seen)
    assert found == reason
    assert text in message


def test_a_game_that_cannot_be_read_shows_the_first_problems_and_how_many_more() -> None:
    bad = {
        "peers": {"replicas": "x", "minReplicas": "x", "maxReplicas": "x"},
        "suspend": 1,
        "bootnode": 1,
        "identity": 1,
        "model": 1,
    }
    _, message = update(bad)
    assert message.count("; expected") == 5
    assert "and 2 more" in message


@pytest.mark.parametrize("spec", [HUB, {"game": {"maxRounds": 0}}, OUTSIDERS], ids=str)
def test_nothing_is_created_for_a_game_that_is_not_accepted(spec: dict[str, Any]) -> None:
    found = build_plan(game(spec), EMPTY, DEFAULTS)
    assert (found.keys, found.children, found.deletions, found.dry_run) == ((), (), (), None)
    assert found.status.start_time is None


def changed(spec: dict[str, Any], seen: dict[str, Any] | None = None) -> Plan:
    """Plan a running game whose spec is this now."""
    resource, observed = running(valid_game())
    return build_plan(game(spec, status=resource.status, generation=2), replace(observed, **(seen or {})), DEFAULTS)


@pytest.mark.parametrize("spec", [HUB, {"game": {"maxRounds": 0}}], ids=str)
def test_running_peers_are_not_touched_when_their_game_becomes_invalid(spec: dict[str, Any]) -> None:
    found = changed(spec)
    assert reported(found)["Accepted"][0] == "False"
    assert (found.children, found.deletions) == ((), ())


def test_an_invalid_spec_leaves_the_other_conditions_as_they_were() -> None:
    resource, _ = running(valid_game())
    found = changed({"game": {"maxRounds": 0}})
    assert reported(found) == {**reported(resource.status), "Accepted": ("False", "InvalidGame")}
    assert found.status.observed_generation == 2


def test_a_job_with_a_pod_template_is_created_after_a_dry_run() -> None:
    spec = {"peers": {"podTemplate": {"spec": {"priorityClassName": "high"}}}}
    resource, observed = settled(valid_game(spec))
    assert observed.job is None
    found = build_plan(resource, observed, DEFAULTS)
    assert found.dry_run is not None
    assert found.dry_run.manifest["metadata"]["generateName"] == "sums-peers-"
    assert "name" not in found.dry_run.manifest["metadata"]
    assert found.requeue_after == 0.0
    answered = build_plan(resource, replace(observed, dry_run=DryRunFacts(found.dry_run.hash)), DEFAULTS)
    assert [child.name for child in answered.children] == ["sums-peers"]
    assert answered.dry_run is None
    assert settled(valid_game())[1].job is not None


def test_a_refused_template_is_not_sent_again() -> None:
    spec = {"peers": {"podTemplate": {"spec": {"priorityClassName": "high"}}}}
    resource, observed = settled(valid_game(spec))
    dry_run = build_plan(resource, observed, DEFAULTS).dry_run
    assert dry_run is not None
    found = build_plan(resource, replace(observed, dry_run=DryRunFacts(dry_run.hash, "no PriorityClass")), DEFAULTS)
    assert reported(found)["Accepted"] == ("False", "InvalidPodTemplate")
    assert (found.dry_run, found.children) == (None, ())


def test_the_number_of_peers_needs_no_new_dry_run() -> None:
    spec = {"peers": {"replicas": 2, "podTemplate": {"spec": {"priorityClassName": "high"}}}}
    hashes = []
    for size in (2, 4):
        spec["peers"]["replicas"] = size  # type: ignore[index]
        dry_run = build_plan(*settled(valid_game(spec)), DEFAULTS).dry_run
        assert dry_run is not None
        hashes.append(dry_run.hash)
    assert hashes[0] == hashes[1]


def test_a_module_whose_image_cannot_be_pulled_is_a_module_that_is_missing() -> None:
    resource, observed = running(valid_game(MODULE))
    pod = waiting_pod(0, "ImagePullBackOff", 'Back-off pulling image "example.dev/m:1": not found')
    found = build_plan(resource, replace(observed, pods=(pod,)), DEFAULTS)
    assert reported(found)["Accepted"] == ("False", "ModuleNotFound")


def test_only_objects_that_a_game_names_are_read() -> None:
    resource = valid_game({**EXTERNAL, **HUB, **VARIABLE, "storage": {"cache": {"claimName": "shared"}}})
    assert resource.game is not None
    found = references(resource.game, DEFAULTS)
    assert found.secrets == {
        "hub": frozenset({"token"}),
        "rpc": frozenset({"url"}),
        "wallet": frozenset({"key"}),
        "mine": frozenset({"a"}),
    }
    assert (found.config_maps, found.claims) == ({}, frozenset({"shared"}))


@pytest.mark.parametrize("source", ["secretKeyRef", "configMapKeyRef"])
@pytest.mark.parametrize("name", ["", "../../kube-system/secrets/root", "No", "a" * 254])
def test_a_reference_by_a_name_that_no_object_can_have_is_said_and_not_asked_for(source: str, name: str) -> None:
    spec = referring(source, name)
    found = valid_game(spec).game
    assert found is not None
    required = references(found, DEFAULTS)
    assert not required.secrets
    assert not required.config_maps
    reason, message = update(spec)
    assert reason == "InvalidPodTemplate"
    assert f'the variable A has valueFrom.{source}.name "{name[:253]}"; expected the name of a Kubernetes' in message
