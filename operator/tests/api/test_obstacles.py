"""What stands in a game's way on a real API server with its controllers: said within 30 s, in the server's words; and
objects of others stay as they are.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from operators import eventually, manifest, operator, settled

from swarmgame_operator.api import (
    CLAIM,
    CONFIG_MAP,
    DEPLOYMENT,
    GAME,
    JOB,
    NETWORK_POLICY,
    SECRET,
    SERVICE,
    Api,
    ResourceKind,
)

QUOTA = ResourceKind("ResourceQuota", "v1", "resourcequotas")
LIMITS = ResourceKind("LimitRange", "v1", "limitranges")
POLICY = ResourceKind("ValidatingAdmissionPolicy", "admissionregistration.k8s.io/v1", "validatingadmissionpolicies")
BINDING = ResourceKind(
    "ValidatingAdmissionPolicyBinding", "admissionregistration.k8s.io/v1", "validatingadmissionpolicybindings"
)
SECONDS = 30.0
CLAIMS = {"checkpoints": {"claimTemplate": {"spec": {"resources": {"requests": {"storage": "1Gi"}}}}}}


async def condition(api: Api, namespace: str, kind: str) -> dict[str, Any]:
    game = await api.get(GAME, namespace, "sums")
    found = ((game or {}).get("status") or {}).get("conditions") or ()
    return next((each for each in found if each["type"] == kind), {})


async def told(api: Api, namespace: str, reason: str, *words: str) -> None:
    """Wait until Degraded and Ready say it."""
    seen: dict[str, Any] = {}

    async def says() -> bool:
        seen.update(await condition(api, namespace, "Degraded"))
        ready = await condition(api, namespace, "Ready")
        return (
            (seen.get("status"), seen.get("reason")) == ("True", reason)
            and all(word in seen["message"] for word in words)
            and ready["reason"] == "Blocked"
            and ready["message"] == seen["message"]
        )

    try:
        await eventually(says, SECONDS)
    except AssertionError as error:
        raise AssertionError(f"{seen}") from error


async def quota(api: Api, namespace: str, **hard: str) -> None:
    """Make a quota, and wait until it is enforced."""
    limits = {name.replace("__", "/").replace("_", "."): amount for name, amount in hard.items()}
    await api.create(QUOTA, namespace, {"metadata": {"name": "small"}, "spec": {"hard": limits}})

    async def enforced() -> bool:
        found = await api.get(QUOTA, namespace, "small")
        return ((found or {}).get("status") or {}).get("hard") == limits

    await eventually(enforced)


async def warnings(api: Api, namespace: str) -> list[str]:
    events = (await api.list_page(ResourceKind("Event", "v1", "events"), namespace))["items"]
    of_game = [each for each in events if each["involvedObject"]["kind"] == "SwarmGame"]
    return [each["reason"] for each in of_game if each["type"] == "Warning"]


@pytest.mark.parametrize(
    "hard", [{"services": "0"}, {"count__jobs_batch": "0"}, {"count__configmaps": "1"}, {"persistentvolumeclaims": "0"}]
)
async def test_a_quota_on_objects_is_quoted_in_one_event_and_the_game_goes_on_when_it_is_raised(
    api: Api, cluster_config: Path, namespace: str, hard: dict[str, str]
) -> None:
    await quota(api, namespace, **hard)
    async with operator(cluster_config, namespace):
        await api.create(GAME, namespace, manifest(storage=CLAIMS))
        await told(api, namespace, "ObjectRefused", "exceeded quota: small", "Raise the namespace's ResourceQuota")
        await eventually(lambda: warnings(api, namespace))
        await api.delete(QUOTA, namespace, "small", propagation="Background")

        async def goes_on() -> bool:
            return (await condition(api, namespace, "Degraded"))["reason"] != "ObjectRefused" and bool(
                await api.get(JOB, namespace, "sums-peers")
            )

        await eventually(goes_on, 60)
        assert await warnings(api, namespace) == ["ObjectRefused"]


async def test_a_quota_on_pods_is_quoted(api: Api, cluster_config: Path, namespace: str) -> None:
    await quota(api, namespace, pods="0")
    async with operator(cluster_config, namespace):
        await api.create(GAME, namespace, manifest(bootnode={"enabled": False}))
        await told(api, namespace, "PodsRefused", "Job sums-peers", "exceeded quota: small")


async def test_a_quota_that_asks_for_limits_is_quoted_for_the_bootnode(
    api: Api, cluster_config: Path, namespace: str
) -> None:
    await quota(api, namespace, limits_cpu="4")
    async with operator(cluster_config, namespace):
        await api.create(GAME, namespace, manifest())
        await told(api, namespace, "PodsRefused", "must specify limits.cpu", "LimitRange with defaults")


async def test_a_limit_range_is_quoted(api: Api, cluster_config: Path, namespace: str) -> None:
    limit = {"type": "Container", "max": {"memory": "256Mi"}}
    await api.create(LIMITS, namespace, {"metadata": {"name": "small"}, "spec": {"limits": [limit]}})
    async with operator(cluster_config, namespace):
        await api.create(GAME, namespace, manifest())
        await told(api, namespace, "PodsRefused", "maximum memory usage per Container is 256Mi", "LimitRange")


async def test_pod_security_is_quoted(
    api: Api, cluster_config: Path, new_namespace: Callable[..., Awaitable[str]]
) -> None:
    namespace = await new_namespace({"pod-security.kubernetes.io/enforce": "restricted"})
    peers = {**manifest()["spec"]["peers"], "podTemplate": {"spec": {"hostNetwork": True}}}
    async with operator(cluster_config, namespace):
        await api.create(GAME, namespace, manifest(peers=peers, bootnode={"enabled": False}))
        await told(api, namespace, "PodsRefused", "violates PodSecurity", "hostNetwork=true")


async def test_a_policy_of_the_cluster_is_quoted(api: Api, cluster_config: Path, namespace: str) -> None:
    rule = {"apiGroups": ["apps"], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["deployments"]}
    policy = {
        "metadata": {"name": f"label-{namespace}"},
        "spec": {
            "failurePolicy": "Fail",
            "matchConstraints": {"resourceRules": [rule]},
            "validations": [
                {"expression": "has(object.metadata.labels) && 'team' in object.metadata.labels", "message": "no team"}
            ],
        },
    }
    chosen = {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": namespace}}}
    binding = {
        "metadata": {"name": f"label-{namespace}"},
        "spec": {"policyName": f"label-{namespace}", "validationActions": ["Deny"], "matchResources": chosen},
    }
    await api.create(POLICY, None, policy)
    await api.create(BINDING, None, binding)
    probe = {"selector": {"matchLabels": {"a": "b"}}, "template": {"metadata": {"labels": {"a": "b"}}}}
    pod = {"containers": [{"name": "a", "image": "a"}]}
    deployment = {"metadata": {"name": "probe"}, "spec": {**probe, "template": {**probe["template"], "spec": pod}}}

    async def in_force() -> bool:
        try:
            await api.create(DEPLOYMENT, namespace, deployment, dry_run=True)
        except Exception as error:  # noqa: BLE001  # whatever it is, its text is checked
            return "no team" in str(error)
        return False

    await eventually(in_force)
    try:
        async with operator(cluster_config, namespace):
            await api.create(GAME, namespace, manifest())
            await told(api, namespace, "ObjectRefused", "Deployment sums-bootnode", "no team", "policy")
            assert await api.get(JOB, namespace, "sums-peers") is None
    finally:
        for kind in (BINDING, POLICY):
            await api.delete(kind, None, f"label-{namespace}", propagation="Background")


POD = {"containers": [{"name": "a", "image": "example.dev/a"}], "restartPolicy": "Never"}
LABELS = {"app": "mine"}
THEIRS: list[tuple[ResourceKind, dict[str, Any]]] = [
    (CONFIG_MAP, {"metadata": {"name": "sums-game"}, "data": {"game.yaml": "mine", "other": "mine"}}),
    (SECRET, {"metadata": {"name": "sums-peer-keys"}, "stringData": {"mine": "mine"}}),
    (SECRET, {"metadata": {"name": "sums-bootnode-key"}, "stringData": {"bootnode.key": "mine"}}),
    (SERVICE, {"metadata": {"name": "sums-peers"}, "spec": {"selector": LABELS, "ports": [{"port": 80}]}}),
    (NETWORK_POLICY, {"metadata": {"name": "sums-peers"}, "spec": {"podSelector": {"matchLabels": LABELS}}}),
    (
        CLAIM,
        {
            "metadata": {"name": "sums-checkpoints"},
            "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "2Gi"}}},
        },
    ),
    (
        DEPLOYMENT,
        {
            "metadata": {"name": "sums-bootnode"},
            "spec": {
                "replicas": 0,
                "selector": {"matchLabels": LABELS},
                "template": {"metadata": {"labels": LABELS}, "spec": {"containers": POD["containers"]}},
            },
        },
    ),
    (JOB, {"metadata": {"name": "sums-peers"}, "spec": {"suspend": True, "template": {"spec": POD}}}),
]


@pytest.mark.parametrize(("kind", "body"), THEIRS, ids=lambda each: getattr(each, "name", ""))
async def test_an_object_of_another_is_named_and_stays_as_it_is_even_when_the_game_is_deleted(
    api: Api, cluster_config: Path, namespace: str, kind: ResourceKind, body: dict[str, Any]
) -> None:
    await api.create(kind, namespace, body)
    name = body["metadata"]["name"]

    async def content() -> dict[str, Any]:
        found = await api.get(kind, namespace, name)
        assert found is not None
        kept = ("labels", "annotations", "ownerReferences", "generation", "uid", "deletionTimestamp")
        metadata = {key: found["metadata"].get(key) for key in kept}
        return {"metadata": metadata, **{key: found.get(key) for key in ("spec", "data")}}

    async def at_rest() -> bool:  # the controller of Deployments writes an annotation after the creation
        annotations = (await content())["metadata"]["annotations"] or {}
        return kind is not DEPLOYMENT or "deployment.kubernetes.io/revision" in annotations

    await eventually(at_rest)
    before = await content()
    async with operator(cluster_config, namespace):
        await api.create(GAME, namespace, manifest(storage=CLAIMS))
        await told(api, namespace, "NameTaken", f"The {kind.name} {name} exists and is not this game's", "Rename")
        assert await content() == before
        pods_of = await api.get(JOB, namespace, "sums-peers")
        assert kind is JOB or pods_of is None
        await api.delete(GAME, namespace, "sums", propagation="Background")

        async def gone() -> bool:
            return await api.get(GAME, namespace, "sums") is None

        await eventually(gone)
        assert await content() == before


async def test_the_game_goes_on_when_the_name_is_free(api: Api, cluster_config: Path, namespace: str) -> None:
    kind, body = THEIRS[0]
    await api.create(kind, namespace, body)
    async with operator(cluster_config, namespace):
        await api.create(GAME, namespace, manifest())
        await told(api, namespace, "NameTaken")
        await api.delete(kind, namespace, "sums-game", propagation="Background")

        async def made() -> bool:
            return await api.get(JOB, namespace, "sums-peers") is not None

        await eventually(made, 60)


async def test_a_port_that_was_changed_by_hand_is_mended_and_a_lost_game_label_too(
    api: Api, cluster_config: Path, namespace: str
) -> None:
    async with operator(cluster_config, namespace) as running:
        await api.create(GAME, namespace, manifest())
        await eventually(lambda: running.cache.version_of((namespace, "sums"), JOB, "sums-peers"))
        await settled(running)
        before = {name: await api.get(SERVICE, namespace, f"sums-{name}") for name in ("peers", "bootnode")}
        ports = [{**port, "port": port["port"] + 7} for port in before["peers"]["spec"]["ports"]]  # type: ignore[index]
        await api._call(
            "patch",
            "PATCH",
            SERVICE.path(namespace, "sums-peers"),
            query={"fieldManager": "kubectl"},
            body={"spec": {"ports": ports}},
            content="application/merge-patch+json",
        )
        label = {"metadata": {"labels": {"swarmgame.dev/game": None}}}
        for kind, name in ((CONFIG_MAP, "sums-game"), (SERVICE, "sums-bootnode")):
            await api.merge(kind, namespace, name, label)

        async def mended() -> bool:
            peers = await api.get(SERVICE, namespace, "sums-peers")
            file = await api.get(CONFIG_MAP, namespace, "sums-game")
            bootnode = await api.get(SERVICE, namespace, "sums-bootnode")
            assert peers is not None
            labelled = [each["metadata"]["labels"].get("swarmgame.dev/game") for each in (file, bootnode) if each]
            return peers["spec"]["ports"] == before["peers"]["spec"]["ports"] and labelled == ["sums"] * 2  # type: ignore[index]

        await eventually(mended)
        await settled(running)


async def test_kept_objects_carry_no_label_by_which_argo_cd_would_prune_them(
    api: Api, cluster_config: Path, namespace: str
) -> None:
    async with operator(cluster_config, namespace) as running:
        await api.create(GAME, namespace, manifest(storage=CLAIMS))
        await eventually(lambda: running.cache.version_of((namespace, "sums"), JOB, "sums-peers"))
        await settled(running)
        kept = ((SECRET, "sums-peer-keys"), (SECRET, "sums-bootnode-key"), (CLAIM, "sums-checkpoints"))
        tracking = {"metadata": {"labels": {"app.kubernetes.io/instance": "sums"}}}
        for kind, name in kept:  # as an earlier operator labelled them
            await api.merge(kind, namespace, name, {**tracking, "metadata": {**tracking["metadata"], "annotations": {
                "swarmgame.dev/intent-hash": "of an earlier version"}}})  # fmt: skip

        async def unlabelled() -> bool:
            found = [await api.get(kind, namespace, name) for kind, name in kept]
            return all(
                each is not None
                and not each["metadata"].get("ownerReferences")
                and "app.kubernetes.io/instance" not in each["metadata"]["labels"]
                for each in found
            )

        await eventually(unlabelled)
        await settled(running)


async def test_a_claim_that_cannot_change_is_quoted_and_the_peers_go_on(
    api: Api, cluster_config: Path, namespace: str
) -> None:
    async with operator(cluster_config, namespace) as running:
        await api.create(GAME, namespace, manifest(storage=CLAIMS, bootnode={"enabled": False}))
        await eventually(lambda: running.cache.version_of((namespace, "sums"), JOB, "sums-peers"))
        await settled(running)
        before = await api.get(JOB, namespace, "sums-peers")
        template = {"spec": {"resources": {"requests": {"storage": "2Gi"}}}}
        await api.merge(GAME, namespace, "sums", {"spec": {"storage": {"checkpoints": {"claimTemplate": template}}}})
        await told(
            api, namespace, "ObjectRefused", "PersistentVolumeClaim sums-checkpoints", "immutable", "undo the change"
        )
        after = await api.get(JOB, namespace, "sums-peers")
        assert before is not None
        assert after is not None
        assert after["metadata"]["uid"] == before["metadata"]["uid"]


async def test_a_claim_that_a_deleted_game_has_left_waits_until_the_game_names_it(
    api: Api, cluster_config: Path, namespace: str
) -> None:
    async with operator(cluster_config, namespace) as running:
        await api.create(GAME, namespace, manifest(storage=CLAIMS))
        await eventually(lambda: running.cache.version_of((namespace, "sums"), JOB, "sums-peers"))
        await settled(running)
        await api.delete(GAME, namespace, "sums", propagation="Foreground")

        async def gone() -> bool:
            return (
                await api.get(GAME, namespace, "sums") is None and await api.get(JOB, namespace, "sums-peers") is None
            )

        await eventually(gone, 60)
        before = await api.get(CLAIM, namespace, "sums-checkpoints")
        await api.create(GAME, namespace, manifest(storage=CLAIMS))
        await told(api, namespace, "ClaimKept", "spec.storage.checkpoints.claimName")
        assert await api.get(CLAIM, namespace, "sums-checkpoints") == before
        assert await api.get(JOB, namespace, "sums-peers") is None
        named = {"checkpoints": {"claimTemplate": None, "claimName": "sums-checkpoints"}}
        await api.merge(GAME, namespace, "sums", {"spec": {"storage": named}})

        async def goes_on() -> bool:
            return await api.get(JOB, namespace, "sums-peers") is not None

        await eventually(goes_on)
