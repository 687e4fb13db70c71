"""A game in a namespace with a platform's rules: a quota that asks for limits, a label that every object needs, and no
fixed user. Without `podDefaults` each of them keeps it from starting (`test_obstacles`).
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from operators import eventually, manifest, operator, settled

from swarmgame_api.pods import PodDefaults
from swarmgame_operator.api import DEPLOYMENT, GAME, JOB, POD, SERVICE, Api, ResourceKind

QUOTA = ResourceKind("ResourceQuota", "v1", "resourcequotas")
POLICY = ResourceKind("ValidatingAdmissionPolicy", "admissionregistration.k8s.io/v1", "validatingadmissionpolicies")
BINDING = ResourceKind(
    "ValidatingAdmissionPolicyBinding", "admissionregistration.k8s.io/v1", "validatingadmissionpolicybindings"
)
LABEL = {
    "apiGroups": ["", "apps", "batch"],
    "apiVersions": ["v1"],
    "operations": ["CREATE", "UPDATE"],
    "resources": ["services", "deployments", "jobs", "pods"],
}
USER = {"apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["pods"]}
RULES = {
    "team": (LABEL, "has(object.metadata.labels) && 'team' in object.metadata.labels"),
    "user": (USER, "!has(object.spec.securityContext) || !has(object.spec.securityContext.runAsUser)"),
}
DEFAULTS: dict[str, Any] = {
    "labels": {"team": "swarm"},
    "arbitraryUser": True,
    "resources": {"limits": {"cpu": "500m", "memory": "256Mi"}},
}


@pytest_asyncio.fixture
async def ruled(api: Api, namespace: str) -> AsyncIterator[str]:
    """A namespace with these rules, in force."""
    names = [f"{rule}-{namespace}" for rule in RULES]
    for name, (matched, expression) in zip(names, RULES.values(), strict=True):
        chosen = {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": namespace}}}
        validations = [{"expression": expression, "message": f"refused by {name}"}]
        spec = {"failurePolicy": "Fail", "matchConstraints": {"resourceRules": [matched]}, "validations": validations}
        await api.create(POLICY, None, {"metadata": {"name": name}, "spec": spec})
        binding = {"policyName": name, "validationActions": ["Deny"], "matchResources": chosen}
        await api.create(BINDING, None, {"metadata": {"name": name}, "spec": binding})
    quota = {"limits.cpu": "8", "limits.memory": "16Gi"}
    await api.create(QUOTA, namespace, {"metadata": {"name": "small"}, "spec": {"hard": quota}})

    async def refused(pod: dict[str, Any], text: str) -> bool:
        try:
            await api.create(POD, namespace, pod, dry_run=True)
        except Exception as error:  # noqa: BLE001  # whatever it is, its text is checked
            return text in str(error)
        return False

    def pod(labels: dict[str, str], **spec: Any) -> dict[str, Any]:
        return {
            "metadata": {"name": "probe", "labels": labels},
            "spec": {"containers": [{"name": "a", "image": "a"}], **spec},
        }

    team = {"team": "a"}
    for probe, text in (
        (pod({}), f"refused by team-{namespace}"),
        (pod(team, securityContext={"runAsUser": 1}), f"refused by user-{namespace}"),
        (pod(team), "must specify limits.cpu"),
    ):
        await eventually(lambda probe=probe, text=text: refused(probe, text))
    yield namespace
    for name in names:
        for kind in (BINDING, POLICY):
            await api.delete(kind, None, name, propagation="Background")


async def roles(api: Api, namespace: str) -> set[str]:
    pods = (await api.list_page(POD, namespace))["items"]
    return {each["metadata"]["labels"]["swarmgame.dev/role"] for each in pods}


@pytest.mark.parametrize("by", ["game", "installation"])
async def test_all_pods_of_a_game_fit_the_rules_of_a_platform(
    api: Api, cluster_config: Path, ruled: str, by: str
) -> None:
    chart = {"pod_defaults": PodDefaults.model_validate(DEFAULTS, by_name=False)} if by == "installation" else {}
    game = manifest(podDefaults=DEFAULTS) if by == "game" else manifest()
    async with operator(cluster_config, ruled, **chart) as running:
        await api.create(GAME, ruled, game)

        async def all_there() -> bool:
            return await roles(api, ruled) == {"bootnode", "peer"}

        await eventually(all_there)
        await settled(running)
        for kind, name in ((JOB, "sums-peers"), (DEPLOYMENT, "sums-bootnode"), (SERVICE, "sums-bootnode")):
            found = await api.get(kind, ruled, name)
            assert found is not None
            assert found["metadata"]["labels"]["team"] == "swarm"


async def test_a_change_of_the_labels_reaches_every_object_and_their_removal_too(
    api: Api, cluster_config: Path, namespace: str
) -> None:
    async with operator(cluster_config, namespace) as running:
        await api.create(GAME, namespace, manifest(podDefaults={"labels": {"team": "one", "cost": "7"}}))

        async def labelled(team: str, cost: str | None) -> bool:
            for kind, name in ((DEPLOYMENT, "sums-bootnode"), (SERVICE, "sums-peers"), (JOB, "sums-peers")):
                labels = ((await api.get(kind, namespace, name)) or {"metadata": {"labels": {}}})["metadata"]["labels"]
                if (labels.get("team"), labels.get("cost")) != (team, cost):
                    return False
            return True

        await eventually(lambda: labelled("one", "7"))
        changed = {"spec": {"podDefaults": {"labels": {"team": "two", "cost": None}}}}
        await api.merge(GAME, namespace, "sums", changed)
        await eventually(lambda: labelled("two", None), 60)
        await settled(running)
