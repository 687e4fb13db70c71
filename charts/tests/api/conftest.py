"""Fixtures of the charts' tests: the tools that they need, and a cluster without nodes for helm to install on."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from api_servers import ApiServer, require
from kubernetes import client
from kubernetes.client.exceptions import ApiException
from polling import until
from rendered import DEFINITION, NAMESPACE, OPERATOR

from native_cluster import control_plane, tools

Helm = Callable[..., subprocess.CompletedProcess[str]]
NAME = "swarmgames.swarmgame.dev"


@pytest.fixture(scope="session")
def helm() -> Helm:
    """Run helm; its failure fails the test with its message, unless `check=False`."""
    require(["helm"])

    def run(*arguments: str | Path, check: bool = True) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [str(tools.tool("helm")), *map(str, arguments)], capture_output=True, text=True, check=False
        )
        assert not check or done.returncode == 0, f"helm {' '.join(map(str, arguments))}\n{done.stdout}{done.stderr}"
        return done

    return run


@pytest.fixture(scope="session")
def kubeconform() -> Path:
    """The path of kubeconform."""
    require(["kubeconform"])
    return tools.tool("kubeconform")


@pytest.fixture(scope="session")
def promtool() -> Path:
    """The path of promtool."""
    require(["promtool"])
    return tools.tool("promtool")


@pytest.fixture(scope="session")
def bare_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiServer]:
    """An API server for the charts alone, with controllers, because other tests' objects would collide with helm's."""
    require(["etcd", "kube-apiserver", "kube-controller-manager", "kubectl"])
    plane = control_plane.start(tmp_path_factory.mktemp("charts"), controllers=True, with_parent=True)
    try:
        yield ApiServer(plane, 0.0)
    finally:
        plane.stop()


@pytest.fixture(scope="session")
def installed(bare_server: ApiServer, helm: Helm) -> ApiServer:
    """The same with the operator's chart installed, for all namespaces and with a Lease."""
    where = ("--kubeconfig", bare_server.kubeconfig, "--namespace", NAMESPACE, "--create-namespace")
    helm("install", "swarmgame", OPERATOR, *where, "--set", "replicaCount=2")
    return bare_server


@pytest.fixture
def connection(bare_server: ApiServer) -> Iterator[client.ApiClient]:
    with bare_server.client() as connection:
        yield connection


@pytest.fixture
def helm_there(bare_server: ApiServer, helm: Helm) -> Helm:
    return lambda *arguments, **options: helm(*arguments, "--kubeconfig", bare_server.kubeconfig, **options)


@pytest.fixture
def definition(helm_there: Helm, connection: client.ApiClient) -> Iterator[Callable[[], Any]]:
    """The definition, installed by helm and deleted after the test."""
    definitions = client.ApiextensionsV1Api(connection)

    def read() -> Any:
        try:
            return definitions.read_custom_resource_definition(NAME)
        except ApiException as problem:
            if problem.status != 404:
                raise
            return None

    def established() -> bool:
        conditions = (read().status and read().status.conditions) or ()
        return any(each.type == "Established" and each.status == "True" for each in conditions)

    helm_there("install", "swarmgame-crds", DEFINITION)
    until(established)
    yield read
    helm_there("uninstall", "swarmgame-crds", check=False)
    if read():
        definitions.delete_custom_resource_definition(NAME)
    until(lambda: read() is None)
