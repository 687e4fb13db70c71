"""The API server of the tests behaves as a production one: validation, RBAC, field managers, admission, controllers."""

from __future__ import annotations

import stat

import pytest
from api_servers import ApiServer
from kubernetes import client
from polling import until

CONFIG = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "one"}, "data": {"a": "1"}}


def test_an_object_is_stored_and_an_invalid_one_is_refused_with_its_path(
    api_server: ApiServer, api_namespace: str
) -> None:
    with api_server.client() as connection:
        core = client.CoreV1Api(connection)
        assert core.create_namespaced_config_map(api_namespace, CONFIG).metadata.uid
        service = {"metadata": {"name": "s"}, "spec": {"ports": [{"port": 70_000}]}}
        with pytest.raises(client.ApiException) as refused:
            core.create_namespaced_service(api_namespace, service)
    assert refused.value.status == 422
    assert "spec.ports[0].port" in str(refused.value.body)


def test_rbac_limits_every_user_but_the_administrator(api_server: ApiServer, api_namespace: str) -> None:
    account = f"system:serviceaccount:{api_namespace}:reader"
    role = {
        "metadata": {"name": "reader"},
        "rules": [{"apiGroups": [""], "resources": ["configmaps"], "verbs": ["get", "list"]}],
    }
    subject = {"kind": "ServiceAccount", "name": "reader", "namespace": api_namespace}
    reference = {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "reader"}
    with api_server.client() as connection, api_server.client(account) as reader:
        client.CoreV1Api(connection).create_namespaced_config_map(api_namespace, CONFIG)
        with pytest.raises(client.ApiException) as before:
            client.CoreV1Api(reader).list_namespaced_config_map(api_namespace)
        rbac = client.RbacAuthorizationV1Api(connection)
        rbac.create_namespaced_role(api_namespace, role)
        rbac.create_namespaced_role_binding(
            api_namespace, {"metadata": {"name": "reader"}, "subjects": [subject], "roleRef": reference}
        )

        def listed() -> list[str]:
            try:
                found = client.CoreV1Api(reader).list_namespaced_config_map(api_namespace).items
            except client.ApiException as refused:  # the authorizer learns of the binding from a watch
                if refused.status != 403:
                    raise
                return []
            return [each.metadata.name for each in found]

        names = until(listed)
        with pytest.raises(client.ApiException) as write:
            client.CoreV1Api(reader).delete_namespaced_config_map("one", api_namespace)
    assert names == ["one"]
    assert (before.value.status, write.value.status) == (403, 403)


def test_two_field_managers_that_disagree_get_a_conflict(api_server: ApiServer, api_namespace: str) -> None:
    with api_server.client() as connection:
        core = client.CoreV1Api(connection)

        def apply(manager: str, value: str) -> client.V1ConfigMap:
            body = CONFIG | {"data": {"a": value}}
            return core.patch_namespaced_config_map(
                "one", api_namespace, body, field_manager=manager, _content_type="application/apply-patch+yaml"
            )

        assert apply("first", "1").data == {"a": "1"}
        with pytest.raises(client.ApiException) as conflict:
            apply("second", "2")
    assert conflict.value.status == 409
    assert "first" in str(conflict.value.body)


async def test_the_asynchronous_client_authenticates_as_the_user(api_server: ApiServer, api_namespace: str) -> None:
    from kubernetes.aio import client as aio

    async with await api_server.aio_client("another-user") as connection:
        with pytest.raises(aio.ApiException) as forbidden:
            await aio.CoreV1Api(connection).list_namespaced_config_map(api_namespace)
    assert "another-user" in str(forbidden.value.body)


def test_a_restricted_namespace_refuses_a_pod_that_may_become_root(
    api_server: ApiServer, restricted_api_namespace: str
) -> None:
    with api_server.client() as connection:
        core = client.CoreV1Api(connection)
        pod = {"metadata": {"name": "p"}, "spec": {"containers": [{"name": "c", "image": "x"}]}}
        with pytest.raises(client.ApiException) as refused:
            core.create_namespaced_pod(restricted_api_namespace, pod)
    assert refused.value.status == 403
    assert "restricted" in str(refused.value.body)


def test_only_the_owner_can_read_keys_and_kubeconfigs(api_server: ApiServer) -> None:
    secret = [*api_server.plane.directory.glob("*.key"), *api_server.plane.directory.glob("kubeconfig*")]
    assert len(secret) >= 5
    assert {stat.S_IMODE(path.stat().st_mode) for path in secret} == {0o600}


def test_with_controllers_a_job_creates_its_pods_and_deletes_them_with_itself(
    api_server_with_controllers: ApiServer,
) -> None:
    with api_server_with_controllers.client() as connection:
        core, batch = client.CoreV1Api(connection), client.BatchV1Api(connection)
        core.create_namespace({"metadata": {"name": "jobs"}})
        until(
            lambda: [each.metadata.name for each in core.list_namespaced_service_account("jobs").items] == ["default"]
        )
        template = {"spec": {"restartPolicy": "Never", "containers": [{"name": "c", "image": "x"}]}}
        batch.create_namespaced_job(
            "jobs", {"metadata": {"name": "j"}, "spec": {"parallelism": 2, "completions": 2, "template": template}}
        )
        until(lambda: len(core.list_namespaced_pod("jobs").items) == 2)
        batch.delete_namespaced_job("j", "jobs", propagation_policy="Background", grace_period_seconds=0)
        until(lambda: core.list_namespaced_pod("jobs").items == [])
