"""Network policies, claims, keys' owners, services and addresses: what is around the pods."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from plan_fixtures import BOOTNODE_PEER, DEFAULTS, EMPTY, build_plan, game_context, valid_game

from swarmgame_operator.plan import Child
from swarmgame_operator.plan.children import desired_children
from swarmgame_operator.plan.key_secrets import key_secrets
from swarmgame_operator.plan.network import network_policies
from swarmgame_operator.plan.services import public_address, rendezvous, services
from swarmgame_operator.plan.storage import claims
from swarmgame_operator.snapshot import ChildFacts, Observed, PodFacts, ServiceFacts

CLAIM = {"claimTemplate": {"spec": {"resources": {"requests": {"storage": "1Gi"}}}}}
EXTERNAL: dict[str, Any] = {
    "coordination": {
        "mode": "External",
        "chainId": 1,
        "contractAddress": "0x" + "00" * 20,
        "rpcSecretRef": {"name": "rpc"},
        "walletSecretRef": {"name": "wallet"},
    }
}
DEV: dict[str, Any] = {"coordination": {"mode": "Dev"}}
HUB: dict[str, Any] = {"model": {"uri": "hf://a/b"}}


def policies(spec: dict[str, Any] | None = None) -> dict[str, dict[str, Any]]:
    return {each.name: each.apply_manifest["spec"] for each in network_policies(game_context(valid_game(spec)))}


def roles(policy: dict[str, Any]) -> list[str]:
    found: list[str] = policy["podSelector"]["matchExpressions"][0]["values"]
    return found


def reached(rules: list[dict[str, Any]], key: str) -> dict[int, set[str]]:
    """Port → the roles at the other end; `anyone` where none is named, `watchers` for pods of other namespaces."""
    found: dict[int, set[str]] = {}
    for rule in rules:
        ends = {
            "watchers" if "namespaceSelector" in end else end["podSelector"]["matchLabels"]["swarmgame.dev/role"]
            for end in rule.get(key, [])
        }
        for port in rule["ports"]:
            found.setdefault(port["port"], set()).update(ends or {"anyone"})
    return found


def test_isolated_peers_are_reached_by_one_another_and_by_those_who_watch() -> None:
    policy = policies()["sums-peers"]
    assert roles(policy) == ["bootnode", "initializer", "peer"]
    assert reached(policy["ingress"], "from") == {31000: {"bootnode", "peer"}, 8080: {"watchers"}}
    assert reached(policy["egress"], "to") == {53: {"anyone"}, 31000: {"bootnode", "peer"}}


def test_only_whoever_fetches_the_model_reaches_the_hub() -> None:
    assert "sums-hub" not in policies()
    assert roles(policies(HUB)["sums-hub"]) == ["peer"], "with a cache of its own, a pod fetches for itself"
    with_cache = policies({**HUB, "storage": {"cache": {"claimName": "c"}}})
    assert roles(with_cache["sums-hub"]) == ["initializer"]
    assert reached(with_cache["sums-hub"]["egress"], "to") == {443: {"anyone"}}
    assert with_cache["sums-hub"]["policyTypes"] == ["Egress"]


def test_only_the_gateway_reaches_the_rpc_of_a_chain_elsewhere() -> None:
    found = policies(EXTERNAL)
    assert reached(found["sums-peers"]["egress"], "to") == {
        53: {"anyone"},
        31000: {"bootnode", "peer"},
        8645: {"gateway"},
    }
    assert reached(found["sums-gateway"]["egress"], "to")[1] == {"anyone"}
    assert reached(found["sums-gateway"]["ingress"], "from") == {8645: {"peer", "watchers"}}
    assert "sums-chain" not in found


def test_a_dev_chain_speaks_to_nobody_and_only_the_game_speaks_to_it() -> None:
    found = policies(DEV)
    assert reached(found["sums-chain"]["ingress"], "from") == {8545: {"gateway", "peer"}}
    assert (found["sums-chain"]["egress"], found["sums-chain"]["policyTypes"]) == ([], ["Ingress", "Egress"])
    assert reached(found["sums-gateway"]["egress"], "to") == {53: {"anyone"}, 8545: {"chain"}}


OPEN: list[dict[str, Any]] = [
    {"bootnode": {"expose": "NodePort"}},
    {"bootnode": {"expose": "LoadBalancer"}},
    {"communication": {"initialPeers": [f"/ip4/192.0.2.1/tcp/1/p2p/16Uiu2HAm{'1' * 44}"]}},
]


@pytest.mark.parametrize("spec", OPEN, ids=str)
def test_a_game_with_members_elsewhere_is_open_on_its_p2p_port_and_no_other(spec: dict[str, Any]) -> None:
    policy = policies(spec)["sums-peers"]
    assert reached(policy["ingress"], "from") == {31000: {"anyone"}, 8080: {"watchers"}}
    assert reached(policy["egress"], "to")[1] == {"anyone"}


def test_peers_of_a_closed_world_reach_one_another_on_any_port_and_nobody_else() -> None:
    policy = policies({"communication": {"backend": "TorchDistributed"}})["sums-peers"]
    (among,) = [
        rule for rule in policy["ingress"] if rule["ports"] == [{"protocol": "TCP", "port": 1, "endPort": 65_535}]
    ]
    assert reached([among], "from") == {1: {"bootnode", "peer"}}
    assert reached(policy["egress"], "to") == {53: {"anyone"}, 1: {"bootnode", "peer"}}


def test_a_bootnode_that_is_not_there_exposes_nothing() -> None:
    assert reached(policies({"bootnode": {"enabled": False, "expose": "NodePort"}})["sums-peers"]["ingress"], "from")[
        31000
    ] == {
        "bootnode",
        "peer",
    }


def test_no_policy_is_made_where_none_is_wanted() -> None:
    assert policies({"networkPolicy": {"mode": "None"}}) == {}


def owned(child: Child) -> bool:
    return bool(child.apply_manifest["metadata"].get("ownerReferences"))


@pytest.mark.parametrize(("policy", "expected"), [("Retain", False), ("Delete", True)])
def test_checkpoints_outlive_their_game_unless_told_otherwise_and_a_cache_never_does(
    policy: str, expected: bool
) -> None:
    spec = {"storage": {"cache": CLAIM, "checkpoints": {**CLAIM, "retentionPolicy": {"whenDeleted": policy}}}}
    cache, checkpoints = claims(game_context(valid_game(spec)), over=False)
    assert (cache.name, owned(cache)) == ("sums-cache", True)
    assert (checkpoints.name, owned(checkpoints)) == ("sums-checkpoints", expected)


def test_a_claim_is_made_as_its_template_says_and_later_only_its_owner_changes() -> None:
    template = {
        "metadata": {"labels": {"team": "a", "swarmgame.dev/game": "not-this"}, "annotations": {"x": "y"}},
        "spec": {
            "accessModes": ["ReadWriteMany"],
            "storageClassName": "fast",
            "resources": {"requests": {"storage": "5Gi"}},
        },
    }
    (claim,) = claims(game_context(valid_game({"storage": {"cache": {"claimTemplate": template}}})), over=False)
    assert claim.create_manifest is not None
    assert claim.create_manifest["spec"] == template["spec"]
    assert "spec" not in claim.apply_manifest
    assert claim.apply_manifest["metadata"]["labels"]["team"] == "a"
    assert claim.apply_manifest["metadata"]["labels"]["swarmgame.dev/game"] == "sums"
    assert claim.apply_manifest["metadata"]["annotations"] == {"x": "y"}


def test_a_claim_that_was_only_named_is_nobodys_to_make_or_delete() -> None:
    spec = {
        "storage": {
            "checkpoints": {"claimName": "mine", "retentionPolicy": {"whenFinished": "Delete", "whenDeleted": "Delete"}}
        }
    }
    assert claims(game_context(valid_game(spec)), over=True) == ()


@pytest.mark.parametrize(("policy", "expected"), [("Retain", False), ("Delete", True)])
def test_keys_outlive_their_game_unless_told_otherwise(policy: str, expected: bool) -> None:
    for each in key_secrets(game_context(valid_game({"identity": {"retentionPolicy": policy}})), {}, {}):
        assert bool(each.secret["metadata"].get("ownerReferences")) is expected
        assert each.secret["type"] == "Opaque"


def test_a_change_of_the_keys_policy_is_applied_without_a_new_key() -> None:
    there = {
        "sums-peer-keys": frozenset(f"peer-{index}.key" for index in range(4)),
        "sums-bootnode-key": frozenset({"bootnode.key"}),
    }
    facts = {("Secret", name): ChildFacts("another") for name in there}
    assert [each.missing for each in key_secrets(game_context(valid_game()), there, facts)] == [(), ()]


def test_keys_that_the_author_brings_are_used_and_never_made() -> None:
    found = key_secrets(game_context(valid_game({"identity": {"secretName": "mine"}})), {}, {})
    assert [each.name for each in found] == ["sums-bootnode-key"]


def test_a_key_that_was_lost_is_the_only_one_made() -> None:
    there = {"sums-peer-keys": frozenset({"peer-0.key", "peer-3.key", "somebody-elses"})}
    found = key_secrets(game_context(valid_game()), there, {})
    assert found[0].missing == ("peer-1.key", "peer-2.key")


def test_peers_are_found_before_they_are_ready() -> None:
    found = {
        each.name: each.apply_manifest["spec"]
        for each in services(game_context(valid_game({**DEV, "bootnode": {"expose": "NodePort"}})))
    }
    assert set(found) == {"sums-peers", "sums-bootnode", "sums-bootnode-external", "sums-gateway", "sums-chain"}
    for name in ("sums-peers", "sums-bootnode"):
        assert (found[name]["clusterIP"], found[name]["publishNotReadyAddresses"]) == ("None", True)
    assert found["sums-bootnode-external"]["type"] == "NodePort"
    assert found["sums-bootnode-external"]["selector"] == {
        "swarmgame.dev/game": "sums",
        "swarmgame.dev/role": "bootnode",
    }


def test_a_closed_world_has_neither_bootnode_nor_its_key_and_is_ready_without() -> None:
    closed = game_context(valid_game({"communication": {"backend": "TorchDistributed"}}))
    assert [each.name for each in services(closed)] == ["sums-peers"]
    assert "sums-bootnode" not in {each.name for each in desired_children(closed, running=True, over=False)}
    assert [each.name for each in key_secrets(closed, {}, {})] == ["sums-peer-keys"]
    assert rendezvous(closed) == "sums-peers-0.sums-peers.lab.svc:31000"


INSIDE = f"/dns4/sums-bootnode.lab.svc/tcp/31000/p2p/{BOOTNODE_PEER}"
BOOTNODE = PodFacts("b", "bootnode", host_ip="192.0.2.7")
ADDRESSES: list[tuple[Observed, str]] = [
    (EMPTY, INSIDE),
    (replace(EMPTY, services=(ServiceFacts("sums-bootnode-external"),)), INSIDE),
    (replace(EMPTY, services=(ServiceFacts("sums-bootnode-external", {"p2p": 30123}),)), INSIDE),
    (
        replace(EMPTY, services=(ServiceFacts("sums-bootnode-external", {"p2p": 30123}),), pods=(BOOTNODE,)),
        f"/ip4/192.0.2.7/tcp/30123/p2p/{BOOTNODE_PEER}",
    ),
    (
        replace(EMPTY, services=(ServiceFacts("sums-bootnode-external", ingress=("198.51.100.4",)),)),
        f"/ip4/198.51.100.4/tcp/31000/p2p/{BOOTNODE_PEER}",
    ),
    (
        replace(EMPTY, services=(ServiceFacts("sums-bootnode-external", ingress=("lb.example.dev",)),)),
        f"/dns4/lb.example.dev/tcp/31000/p2p/{BOOTNODE_PEER}",
    ),
    (
        replace(EMPTY, services=(ServiceFacts("sums-bootnode-external", ingress=("2001:db8::1",)),)),
        f"/ip6/2001:db8::1/tcp/31000/p2p/{BOOTNODE_PEER}",
    ),
]


@pytest.mark.parametrize(("observed", "expected"), ADDRESSES)
def test_the_address_in_the_status_is_the_one_that_an_outsider_can_use_once_there_is_one(
    observed: Observed, expected: str
) -> None:
    assert public_address(game_context(valid_game({"bootnode": {"expose": "NodePort"}})), observed) == expected


def test_the_games_file_is_the_manifest_with_its_defaults() -> None:
    from swarmgame_api.load import loads_manifest

    resource = valid_game(HUB)
    (file,) = [
        each for each in desired_children(game_context(resource), running=True, over=False) if each.kind == "ConfigMap"
    ]
    assert loads_manifest(file.apply_manifest["data"]["game.yaml"]) == resource.game


def test_the_wallet_and_the_rpc_are_mounted_in_the_gateway_and_nowhere_else() -> None:
    resource = valid_game(EXTERNAL)
    secrets = {"rpc": frozenset({"url"}), "wallet": frozenset({"key"})}
    first = build_plan(resource, replace(EMPTY, secrets=secrets), DEFAULTS)
    assert first.keys
    from plan_fixtures import settled

    _, observed = settled(resource, replace(EMPTY, secrets=secrets))
    again = build_plan(resource, replace(observed, children={}, job=None), DEFAULTS)
    holders = {
        child.name
        for child in again.children
        if "wallet" in str(child.create_manifest or child.apply_manifest) and child.kind != "ConfigMap"
    }
    assert holders == {"sums-gateway"}
