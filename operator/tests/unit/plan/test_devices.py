"""Devices of any name: how many processes a peer has, what is refused, and which taints are tolerated."""

from __future__ import annotations

from typing import Any

import pytest
from golden_games import quickstart, written_manifests
from plan_fixtures import DEFAULTS, EMPTY, condition, game_context, valid_game

from swarmgame_operator.plan import build_plan
from swarmgame_operator.plan.devices import device_problem, processes, tolerations, uncounted_devices

MIG = "nvidia.com/mig-1g.10gb"
CLAIM: dict[str, Any] = {
    "podTemplate": {
        "spec": {
            "resourceClaims": [{"name": "gpu", "resourceClaimTemplateName": "one-gpu"}],
            "containers": [{"name": "peer", "resources": {"claims": [{"name": "gpu"}]}}],
        }
    }
}


@pytest.mark.parametrize(
    ("peers", "count", "uncounted"),
    [
        ({"resources": {"limits": {"nvidia.com/gpu": "4"}}}, "4", ()),
        ({"resources": {"limits": {MIG: "1"}}}, "1", ()),
        ({"resources": {"limits": {"gpu.intel.com/xe": "2"}}}, "auto", ("gpu.intel.com/xe",)),
        ({"resources": {"limits": {"nvidia.com/gpu.shared": "1"}}}, "auto", ("nvidia.com/gpu.shared",)),
        ({"resources": {"limits": {"nvidia.com/gpu": "2", "rdma/hca": "1"}}}, "2", ("rdma/hca",)),
        ({"resources": {"limits": {"memory": "1Gi", "hugepages-2Mi": "4Mi"}}}, "auto", ()),
        ({"resources": {"limits": {"gpu.intel.com/xe": "0"}}}, "auto", ()),
        (CLAIM, "auto", ("the claim gpu",)),
        ({**CLAIM, "processesPerPeer": 2}, "2", ("the claim gpu",)),
    ],
    ids=str,
)
def test_auto_is_counted_where_the_number_is_known_and_in_the_pod_where_it_is_not(
    peers: dict[str, Any], count: str, uncounted: tuple[str, ...]
) -> None:
    game = game_context(valid_game({"peers": peers}))
    assert processes(game) == count
    assert uncounted_devices(game) == uncounted
    assert device_problem(game) == ""


@pytest.mark.parametrize(
    ("resources", "text"),
    [({MIG: "2"}, "2 MIG devices"), ({MIG: "1", "nvidia.com/gpu": "1"}, "MIG devices beside GPUs")],
)
def test_several_mig_devices_are_refused_with_what_to_set(resources: dict[str, str], text: str) -> None:
    peers = {"resources": {"limits": resources}}
    found = condition(build_plan(valid_game({"peers": peers}), EMPTY, DEFAULTS), "Accepted")
    assert found is not None
    assert (found.status, found.reason) == ("False", "InvalidGame")
    assert text in found.message
    assert "processesPerPeer" in found.message
    chosen = valid_game({"peers": {**peers, "processesPerPeer": 1}})
    again = condition(build_plan(chosen, EMPTY, DEFAULTS), "Accepted")
    assert again is not None
    assert again.status == "True"


@pytest.mark.parametrize(
    ("resources", "keys"),
    [
        ({"nvidia.com/gpu": "1"}, ["nvidia.com/gpu"]),
        ({"amd.com/gpu": "1"}, ["nvidia.com/gpu"]),
        ({MIG: "1"}, ["nvidia.com/gpu"]),
        ({"nvidia.com/gpu": "1", "rdma/hca": "1"}, ["nvidia.com/gpu", "rdma/hca"]),
        ({"gpu.intel.com/xe": "1"}, ["gpu.intel.com/xe"]),
        ({"cpu": "1"}, []),
    ],
    ids=str,
)
def test_the_taints_of_nodes_with_these_devices_are_tolerated(resources: dict[str, str], keys: list[str]) -> None:
    game = game_context(valid_game({"peers": {"resources": {"limits": resources}}}))
    assert [each["key"] for each in tolerations(game)] == keys


def environment(peers: dict[str, Any]) -> dict[str, Any]:
    written = written_manifests(quickstart({"peers": peers}))
    (job,) = (each for each in written if (each["kind"], each["metadata"]["name"]) == ("Job", "quickstart-peers"))
    (container,) = job["spec"]["template"]["spec"]["containers"]
    return {each["name"]: each.get("value", each.get("valueFrom")) for each in container["env"]}


def test_a_pod_that_counts_its_processes_knows_its_cpus_and_what_it_asks_for() -> None:
    found = environment({**CLAIM, "resources": {"requests": {"cpu": "8"}}})
    assert found["SWARMGAME_DEVICES"] == "the claim gpu"
    assert found["SWARMGAME_CPUS"]["resourceFieldRef"]["resource"] == "requests.cpu"
    assert "OMP_NUM_THREADS" not in found, "each process gets its share"
    assert environment(CLAIM)["OMP_NUM_THREADS"] == "1", "nothing is requested, and several peers may share the node"
    for peers in ({"resources": {"limits": {"nvidia.com/gpu": "1"}}}, {**CLAIM, "processesPerPeer": 1}, {}):
        plain = environment(peers)
        assert not {"SWARMGAME_DEVICES", "SWARMGAME_CPUS"} & set(plain), peers
        assert "OMP_NUM_THREADS" in plain
