"""The rights of the operator and of users: those that are needed and no others, by a real API server with the roles."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import pytest
import raw
from api_servers import ApiServer
from kubernetes import client
from polling import until
from rendered import NAMESPACE, OPERATOR

Helm = Callable[..., subprocess.CompletedProcess[str]]

OPERATOR_ACCOUNT = f"system:serviceaccount:{NAMESPACE}:swarmgame"
VERBS = ("get", "list", "watch", "create", "update", "patch", "delete", "deletecollection")
OWN_RESOURCES = ("swarmgames", "swarmgames/status", "swarmgames/scale", "swarmgames/finalizers")
CHILD = frozenset({"get", "list", "watch", "create", "patch", "delete"})
NEEDED = {
    ("swarmgame.dev", "swarmgames"): frozenset({"get", "list", "watch", "delete"}),
    ("swarmgame.dev", "swarmgames/status"): frozenset({"patch"}),
    ("swarmgame.dev", "swarmgames/finalizers"): frozenset({"update"}),
    ("batch", "jobs"): CHILD,
    ("apps", "deployments"): CHILD,
    ("apps", "statefulsets"): CHILD,
    ("networking.k8s.io", "networkpolicies"): CHILD,
    ("", "services"): CHILD,
    ("", "configmaps"): CHILD,
    ("", "secrets"): CHILD,
    ("", "persistentvolumeclaims"): CHILD,
    ("", "pods"): frozenset({"get", "list", "watch"}),
    ("", "events"): frozenset({"create", "list"}),
}
"""The operator's rights in a namespace that it watches."""


@dataclass(frozen=True)
class Resource:
    """A resource or subresource that the API server knows."""

    group: str
    name: str

    @property
    def key(self) -> tuple[str, str]:
        return self.group, self.name


def resources_of(server: ApiServer) -> set[Resource]:
    """Return every resource that the API server serves, with subresources."""
    groups = [
        (group["name"], f"/apis/{group['preferredVersion']['groupVersion']}")
        for group in raw.get(server, "/apis")["groups"]
    ]
    return {
        Resource(group, each["name"])
        for group, path in [("", "/api/v1"), *groups]
        for each in raw.get(server, path)["resources"]
    }


@dataclass(frozen=True)
class Authorizer:
    """The API server's authorizer."""

    connection: client.ApiClient

    def allows(
        self,
        user: str,
        verb: str,
        resource: Resource,
        namespace: str = "",
        name: str = "",
        groups: tuple[str, ...] = (),
    ) -> bool:
        kind, _, subresource = resource.name.partition("/")
        attributes = {
            "group": resource.group,
            "resource": kind,
            "subresource": subresource,
            "verb": verb,
            "namespace": namespace,
            "name": name,
        }
        review = {"spec": {"user": user, "groups": list(groups), "resourceAttributes": attributes}}
        return bool(client.AuthorizationV1Api(self.connection).create_subject_access_review(review).status.allowed)

    def rights(self, user: str, resources: list[Resource], namespace: str) -> dict[tuple[str, str], frozenset[str]]:
        """Return the user's rights by resource."""
        found = {
            each.key: frozenset(verb for verb in VERBS if self.allows(user, verb, each, namespace))
            for each in resources
        }
        return {key: verbs for key, verbs in found.items() if verbs}


def rights_in_force(
    authorizer: Authorizer, user: str, resources: list[Resource], namespace: str
) -> dict[tuple[str, str], frozenset[str]]:
    """Return the user's rights once they include the operator's: the authorizer learns of them from watches."""

    def found() -> dict[tuple[str, str], frozenset[str]]:
        rights = authorizer.rights(user, resources, namespace)
        return rights if all(verbs <= rights.get(key, frozenset()) for key, verbs in NEEDED.items()) else {}

    return until(found, 60.0, seen=lambda: authorizer.rights(user, resources, namespace))


@pytest.fixture(scope="module")
def authorizer(installed: ApiServer) -> Iterator[Authorizer]:
    with installed.client() as connection:
        yield Authorizer(connection)


@pytest.fixture(scope="module")
def resources(installed: ApiServer) -> list[Resource]:
    return sorted(
        resources_of(installed) | {Resource("swarmgame.dev", name) for name in OWN_RESOURCES},
        key=lambda resource: resource.key,
    )


def test_the_operator_has_the_rights_that_it_needs_and_no_others_in_any_namespace(
    authorizer: Authorizer, resources: list[Resource]
) -> None:
    assert len(resources) > 60
    assert rights_in_force(authorizer, OPERATOR_ACCOUNT, resources, "anywhere") == NEEDED


def test_the_operator_has_its_lease_in_its_own_namespace_and_no_other(authorizer: Authorizer) -> None:
    leases = Resource("coordination.k8s.io", "leases")

    def may(verb: str, namespace: str, name: str = "swarmgame") -> bool:
        return authorizer.allows(OPERATOR_ACCOUNT, verb, leases, namespace, name)

    until(lambda: may("get", NAMESPACE))  # the authorizer learns of roles and bindings from watches
    assert {verb for verb in VERBS if may(verb, NAMESPACE)} == {"get", "create", "update"}
    assert {verb for verb in VERBS if may(verb, NAMESPACE, "kube-scheduler")} == {"create"}
    assert not any(may(verb, "kube-system") for verb in VERBS)


def test_the_operator_follows_the_definition_of_swarmgame_and_no_other(authorizer: Authorizer) -> None:
    definitions = Resource("apiextensions.k8s.io", "customresourcedefinitions")

    def may(verb: str, name: str) -> bool:
        return authorizer.allows(OPERATOR_ACCOUNT, verb, definitions, name=name)

    until(lambda: may("list", "swarmgames.swarmgame.dev"))
    assert {verb for verb in VERBS if may(verb, "swarmgames.swarmgame.dev")} == {"list", "watch"}
    assert not any(may(verb, "others.example.com") for verb in VERBS)
    assert not any(may(verb, "") for verb in VERBS)


def test_with_watched_namespaces_the_operator_has_the_same_rights_there_and_none_elsewhere(
    installed: ApiServer, helm: Helm, authorizer: Authorizer, resources: list[Resource]
) -> None:
    with installed.client() as administrator:
        for namespace in ("team-a", "team-b", "confined"):
            client.CoreV1Api(administrator).create_namespace({"metadata": {"name": namespace}})
    values = ("--set", "watchNamespaces={team-a,team-b}", "--set", "rbac.userRoles=false")
    helm("install", "confined", OPERATOR, "--kubeconfig", installed.kubeconfig, "--namespace", "confined", *values)
    account = "system:serviceaccount:confined:confined-swarmgame"
    tried = [
        resource
        for resource in resources
        if resource.key in NEEDED or resource.group in ("", "rbac.authorization.k8s.io")
    ]
    assert rights_in_force(authorizer, account, tried, "team-a") == NEEDED
    assert rights_in_force(authorizer, account, tried, "team-b") == NEEDED
    assert authorizer.rights(account, tried, "confined") == {}
    assert authorizer.rights(account, tried, "") == {}


def test_with_secure_metrics_only_the_given_readers_may_get_them(installed: ApiServer, helm: Helm) -> None:
    values = ["rbac.userRoles=false", "watchNamespaces={secured}", "metrics.secure.enabled=true"]
    reader = {"kind": "ServiceAccount", "name": "prometheus", "namespace": "monitoring"}
    values += [f"metrics.secure.readers[0].{key}={value}" for key, value in reader.items()]
    where = ("--kubeconfig", installed.kubeconfig, "--namespace", "secured", "--create-namespace")
    helm("install", "secured", OPERATOR, *where, "--set", ",".join(values))
    with installed.client() as administrator:
        reviews = client.AuthorizationV1Api(administrator)

        def may(user: str, **attributes: Any) -> bool:
            review = reviews.create_subject_access_review({"spec": {"user": user, **attributes}})
            return bool(review.status.allowed)

        metrics = {"nonResourceAttributes": {"path": "/metrics", "verb": "get"}}
        until(lambda: may("system:serviceaccount:monitoring:prometheus", **metrics))
        assert not may("system:serviceaccount:monitoring:default", **metrics)
        for group, resource in (
            ("authentication.k8s.io", "tokenreviews"),
            ("authorization.k8s.io", "subjectaccessreviews"),
        ):
            attributes = {"resourceAttributes": {"group": group, "resource": resource, "verb": "create"}}
            until(partial(may, "system:serviceaccount:secured:secured-swarmgame", **attributes))


USER_RIGHTS = {
    "view": {"swarmgames": {"get", "list", "watch"}, "swarmgames/status": {"get"}, "swarmgames/scale": {"get"}},
    "edit": {
        "swarmgames": {"get", "list", "watch", "create", "update", "patch", "delete"},
        "swarmgames/status": {"get"},
        "swarmgames/scale": {"get", "update", "patch"},
    },
    "admin": {
        "swarmgames": {"get", "list", "watch", "create", "update", "patch", "delete", "deletecollection"},
        "swarmgames/status": {"get"},
        "swarmgames/scale": {"get", "update", "patch"},
    },
}


@pytest.mark.parametrize("role", USER_RIGHTS)
def test_the_roles_view_edit_and_admin_of_a_namespace_include_its_games(
    installed: ApiServer, authorizer: Authorizer, resources: list[Resource], role: str
) -> None:
    user, namespace = f"{role}er", f"of-{role}er"
    with installed.client() as administrator:
        client.CoreV1Api(administrator).create_namespace({"metadata": {"name": namespace}})
        client.RbacAuthorizationV1Api(administrator).create_namespaced_role_binding(
            namespace,
            {
                "metadata": {"name": "binding"},
                "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": role},
                "subjects": [{"kind": "User", "name": user}],
            },
        )
    own = [resource for resource in resources if resource.group == "swarmgame.dev"]
    expected = {("swarmgame.dev", name): frozenset(verbs) for name, verbs in USER_RIGHTS[role].items()}
    until(
        lambda: authorizer.rights(user, own, namespace) == expected,
        60,
        seen=lambda: authorizer.rights(user, own, namespace),
    )
    assert authorizer.rights(user, own, "elsewhere") == {}
