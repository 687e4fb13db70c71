"""A second operator for the same games is refused by helm; one for other namespaces is not."""

from __future__ import annotations

import subprocess
from collections.abc import Callable

import pytest
from api_servers import ApiServer
from kubernetes import client
from rendered import NAMESPACE, OPERATOR

Helm = Callable[..., subprocess.CompletedProcess[str]]
PLACE = ("--namespace", "second", "--create-namespace")


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize("watched", ["", "{default}"])
def test_a_second_release_for_the_same_games_is_refused_with_the_name_of_the_first(
    helm_there: Helm, watched: str
) -> None:
    chosen = ("--set", f"watchNamespaces={watched}") if watched else ()
    done = helm_there("install", "second", OPERATOR, *PLACE, *chosen, check=False)
    assert done.returncode != 0
    assert f"the release swarmgame in the namespace {NAMESPACE} looks after the games of all namespaces" in done.stderr
    assert "watchNamespaces" in done.stderr


@pytest.mark.usefixtures("installed")
def test_the_release_itself_is_upgraded(helm_there: Helm) -> None:
    helm_there("upgrade", "swarmgame", OPERATOR, "--namespace", NAMESPACE, "--set", "replicaCount=2")


def test_releases_for_different_namespaces_do_not_disturb_each_other(bare_server: ApiServer, helm_there: Helm) -> None:
    with bare_server.client() as connection:
        for name in ("one-a", "one-b"):
            client.CoreV1Api(connection).create_namespace({"metadata": {"name": name}})
    own = ("--set", "rbac.userRoles=false", "--dry-run=server")
    there = ("--namespace", "one-a", "--set", "watchNamespaces={one-a}", "--set", "rbac.userRoles=false")
    helm_there("install", "first", OPERATOR, *there)
    try:
        helm_there("install", "other", OPERATOR, *PLACE, *own, "--set", "watchNamespaces={one-b}")
        done = helm_there("install", "same", OPERATOR, *PLACE, *own, "--set", "watchNamespaces={one-a}", check=False)
        assert "the release first in the namespace one-a looks after the games of the namespace one-a" in done.stderr
    finally:
        helm_there("uninstall", "first", "--namespace", "one-a")
