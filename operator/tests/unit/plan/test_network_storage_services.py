"""Network policies, claims, key Secrets and addresses."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from golden_games import quickstart, written_manifests
from plan_fixtures import BOOTNODE_PEER, DEFAULTS, EMPTY, build_plan, game_context, valid_game

from swarmgame_operator.plan import Child
from swarmgame_operator.plan.key_secrets import key_secrets
from swarmgame_operator.plan.network import network_policies
from swarmgame_operator.plan.peer_job import peer_job
from swarmgame_operator.plan.services import public_address
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


def reached(rules: list[dict[str, Any]], key: str) -> dict[int, set[str]]:
    """Return port → roles of the other pods; `anyone` without a selector, `watchers` for pods of other namespaces."""
    found: dict[int, set[str]] = {}
    for rule in rules:
        ends = {
            "watchers" if "namespaceSelector" in end else end["podSelector"]["matchLabels"]["swarmgame.dev/role"]
            for end in rule.get(key, [])
        }
        for port in rule["ports"]:
            found.setdefault(port["port"], set()).update(ends or {"anyone"})
    return found


OPEN: list[dict[str, Any]] = [
    {"bootnode": {"expose": "NodePort"}},
    {"bootnode": {"expose": "LoadBalancer"}},
    {"communication": {"initialPeers": [f"/ip4/192.0.2.1/tcp/1/p2p/16Uiu2HAm{'1' * 44}"]}},
]


@pytest.mark.parametrize("spec", OPEN, ids=str)
def test_a_game_with_remote_members_is_open_on_its_p2p_port_only(spec: dict[str, Any]) -> None:
    policy = policies(spec)["sums-peers"]
    assert reached(policy["ingress"], "from") == {31000: {"anyone"}, 8080: {"watchers"}}
    assert reached(policy["egress"], "to")[1] == {"anyone"}


def test_a_disabled_bootnode_exposes_nothing() -> None:
    assert reached(policies({"bootnode": {"enabled": False, "expose": "NodePort"}})["sums-peers"]["ingress"], "from")[
        31000
    ] == {
        "bootnode",
        "peer",
    }


def owned(child: Child) -> bool:
    return bool(child.apply_manifest["metadata"].get("ownerReferences"))


@pytest.mark.parametrize(("policy", "expected"), [("Retain", False), ("Delete", True)])
def test_checkpoints_outlive_their_game_by_default_and_a_cache_never_does(policy: str, expected: bool) -> None:
    spec = {"storage": {"cache": CLAIM, "checkpoints": {**CLAIM, "retentionPolicy": {"whenDeleted": policy}}}}
    cache, checkpoints = claims(game_context(valid_game(spec)), over=False)
    assert (cache.name, owned(cache)) == ("sums-cache", True)
    assert (checkpoints.name, owned(checkpoints)) == ("sums-checkpoints", expected)


def test_a_claim_is_created_from_its_template_which_is_applied_when_it_changes() -> None:
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
    assert claim.apply_manifest == claim.create_manifest, "so that a change is made, or refused in words"
    assert claim.apply_manifest["metadata"]["labels"]["team"] == "a"
    assert claim.apply_manifest["metadata"]["labels"]["swarmgame.dev/game"] == "sums"
    assert claim.apply_manifest["metadata"]["annotations"]["x"] == "y"


def test_a_claim_that_is_only_named_is_neither_created_nor_deleted() -> None:
    spec = {
        "storage": {
            "checkpoints": {"claimName": "mine", "retentionPolicy": {"whenFinished": "Delete", "whenDeleted": "Delete"}}
        }
    }
    assert claims(game_context(valid_game(spec)), over=True) == ()


@pytest.mark.parametrize(("policy", "expected"), [("Retain", False), ("Delete", True)])
def test_keys_outlive_their_game_by_default(policy: str, expected: bool) -> None:
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


def test_keys_of_the_author_are_never_generated() -> None:
    found = key_secrets(game_context(valid_game({"identity": {"secretName": "mine"}})), {}, {})
    assert [each.name for each in found] == ["sums-bootnode-key"]


def test_only_a_missing_key_is_generated() -> None:
    there = {"sums-peer-keys": frozenset({"peer-0.key", "peer-3.key", "another"})}
    found = key_secrets(game_context(valid_game()), there, {})
    assert found[0].missing == ("peer-1.key", "peer-2.key")


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
def test_the_address_in_the_status_is_the_external_one_once_there_is_one(observed: Observed, expected: str) -> None:
    assert public_address(game_context(valid_game({"bootnode": {"expose": "NodePort"}})), observed) == expected


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


@pytest.mark.parametrize(
    ("tracker", "port"),
    [
        ({"use": "tensorboard"}, None),
        ({"use": "wandb"}, 443),
        ({"use": "wandb", "with": {"mode": "offline"}}, None),
        ({"use": "trackio"}, None),
        ({"use": "trackio", "with": {"spaceId": "org/board"}}, 443),
        ({"use": "trackio", "with": {"serverUrl": "http://track.lab:7860"}}, 7860),
    ],
    ids=str,
)
def test_isolated_peers_reach_the_port_of_a_tracker_that_is_a_service(
    tracker: dict[str, Any], port: int | None
) -> None:
    game = valid_game({"observability": {"trackers": [tracker]}})
    [peers] = [each for each in network_policies(game_context(game)) if each.name.endswith("peers")]
    reached_ports = {
        port["port"] for rule in peers.apply_manifest["spec"]["egress"] if "to" not in rule for port in rule["ports"]
    }
    assert reached_ports - {53} == ({port} if port else set())


ON_HUB: dict[str, Any] = {
    "game": {
        "maxRounds": 1,
        "data": {"use": "text", "with": {"source": "hf://org/rows@main"}},
        "rewards": {"use": "exact"},
        "trainer": {"use": "grpo"},
    }
}


def hub_policy(spec: dict[str, Any]) -> tuple[list[str], dict[int, set[str]]] | None:
    """Return the roles that reach the hub, and the ports; None if none does."""
    found = policies(spec).get("sums-hub")
    if found is None:
        return None
    assert found["policyTypes"] == ["Egress"]
    return found["podSelector"]["matchExpressions"][0]["values"], reached(found["egress"], "to")


@pytest.mark.parametrize(
    ("spec", "roles"),
    [
        ({}, None),
        (HUB, ["peer"]),
        ({**HUB, "storage": {"cache": CLAIM}}, ["initializer"]),
        (ON_HUB, ["peer"]),
        ({**ON_HUB, "storage": {"cache": CLAIM}}, ["initializer"]),
        ({**ON_HUB, "model": None, "storage": {"cache": CLAIM}}, ["peer"]),
        ({**ON_HUB, "model": {"uri": "file:///models/a"}, "storage": {"cache": CLAIM}}, ["peer"]),
    ],
    ids=str,
)
def test_data_on_the_hub_opens_the_policy_of_the_pods_that_fetch_it_as_a_model_does(
    spec: dict[str, Any], roles: list[str] | None
) -> None:
    found = hub_policy(spec)
    assert found == (None if roles is None else (roles, {443: {"anyone"}}))


def test_an_address_of_the_hub_anywhere_in_the_datas_options_counts() -> None:
    data = {"use": "mine:Data", "with": {"parts": [{"weights": [1, 2]}, {"from": "hf://org/rows"}]}}
    assert hub_policy({"game": {**ON_HUB["game"], "data": data}}) is not None
    other = {"use": "mine:Data", "with": {"note": "not from hf://org/rows"}}
    assert hub_policy({"game": {**ON_HUB["game"], "data": other}}) is None


@pytest.mark.parametrize(
    ("variable", "url", "port"),
    [
        ("HTTPS_PROXY", "http://proxy.example:3128", 3128),
        ("https_proxy", "proxy.example:3129", 3129),
        ("HF_ENDPOINT", "http://mirror.example/hub", 80),
        ("ALL_PROXY", "socks5://proxy.example:1080", 1080),
    ],
)
def test_a_proxy_and_a_mirror_that_variables_name_can_be_reached(variable: str, url: str, port: int) -> None:
    env = [{"name": variable, "value": url}]
    for given in ({"podDefaults": {"env": env}}, {"peers": {"env": env}}):
        found = hub_policy({**HUB, **given})
        assert found is not None
        assert set(found[1]) == {443, port}


@pytest.mark.parametrize("url", ["http://proxy:99999", "http://[", ""])
def test_an_address_that_cannot_be_read_opens_nothing(url: str) -> None:
    found = hub_policy({**HUB, "podDefaults": {"env": [{"name": "HTTPS_PROXY", "value": url}]}})
    assert found is not None
    assert set(found[1]) == {443}


def test_peers_read_what_the_initializer_fetched_without_asking_the_hub() -> None:
    def variables(spec: dict[str, Any]) -> set[str]:
        created = peer_job(game_context(valid_game(spec))).create_manifest
        assert created is not None
        return {each["name"] for each in created["spec"]["template"]["spec"]["containers"][0]["env"]}

    assert "HF_HUB_OFFLINE" in variables(ON_HUB)
    assert "HF_HUB_OFFLINE" not in variables({**ON_HUB, "model": None}), "no initializer: they fetch it themselves"


# ── clusters whose pods have addresses of IPv6
IPV6 = replace(DEFAULTS, ipv6=True)


def variables_of(resource: Any, defaults: Any) -> dict[str, dict[str, str]]:
    """Return the variables of each container by name."""
    return {
        container["name"]: {each["name"]: each.get("value", "") for each in container["env"]}
        for manifest in written_manifests(resource, defaults)
        for container in manifest.get("spec", {}).get("template", {}).get("spec", {}).get("containers", [])
    }


def test_pods_of_ipv6_announce_and_listen_on_addresses_of_ipv6() -> None:
    found = variables_of(quickstart(DEV), IPV6)
    for name in ("peer", "bootnode"):
        assert found[name]["SWARMGAME_ANNOUNCE"] == "/ip6/$(POD_IP)/tcp/31000"
    assert found["peer"]["SWARMGAME_INITIAL_PEERS"].startswith("/dns6/quickstart-bootnode.lab.svc/tcp/31000/p2p/")
    assert found["gateway"]["SWARMGAME_GATEWAY_BOOTNODES"].startswith("/dns6/")
    assert found["gateway"]["SWARMGAME_GATEWAY_HOST"] == "::"
    (chain,) = (each for each in written_manifests(quickstart(DEV), IPV6) if each["kind"] == "StatefulSet")
    arguments = chain["spec"]["template"]["spec"]["containers"][0]["args"]
    assert arguments[arguments.index("--host") + 1] == "::"
    assert not [
        (container, name)
        for container, variables in found.items()
        for name, text in variables.items()
        if "/ip4/" in text or "0.0.0.0" in text
    ]


# ── the operator behind the API server's proxy
@pytest.mark.parametrize(("addresses", "admitted"), [((), None), (("10.0.0.0/24", "fd00::/64"), 2)])
def test_the_api_server_is_admitted_where_the_operator_reads_through_it(
    addresses: tuple[str, ...], admitted: int | None
) -> None:
    defaults = replace(DEFAULTS, through_api_server=True, api_server_addresses=addresses)
    made = network_policies(game_context(valid_game(DEV), defaults))
    found = {each.name: each.apply_manifest["spec"] for each in made}
    for name, port in (("sums-peers", 8080), ("sums-gateway", 8645)):
        (rule,) = (each for each in found[name]["ingress"] if each["ports"][0]["port"] == port)
        if admitted is None:
            assert "from" not in rule
        else:
            assert [each["ipBlock"]["cidr"] for each in rule["from"] if "ipBlock" in each] == list(addresses)
            assert any("namespaceSelector" in each for each in rule["from"]), "Prometheus still reads"
    p2p = next(each for each in found["sums-peers"]["ingress"] if each["ports"][0]["port"] == 31000)
    assert "from" in p2p, "only the HTTP endpoints are opened"
