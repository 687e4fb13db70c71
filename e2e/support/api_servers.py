"""Fixtures with a real API server and no node: schemas, CEL, server-side apply, RBAC and watches as in production.

There is no kubelet, so no pod runs. Without the binaries a test is skipped with a reason; in CI (CI=true) it fails.
"""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from native_cluster import control_plane, tools

if TYPE_CHECKING:  # these take a second to import, which every run of pytest would pay
    from kubernetes import client
    from kubernetes.aio import client as aio_client


@dataclass(frozen=True)
class ApiServer:
    """A running API server.

    Args:
        plane: its processes and files.
        startup_seconds: from the first process to ready.
    """

    plane: control_plane.ControlPlane
    startup_seconds: float

    @property
    def kubeconfig(self) -> Path:
        return self.plane.kubeconfig

    def kubeconfig_of(self, user: str, groups: Sequence[str] = ()) -> Path:
        """Return a kubeconfig of a user that RBAC limits, such as system:serviceaccount:<namespace>:<name>.

        The user is authenticated by a certificate.
        """
        return self.plane.kubeconfig_of(user, groups)

    def client(self, user: str | None = None, groups: Sequence[str] = ()) -> client.ApiClient:
        """Return a client of the official package, as the administrator or another user."""
        from kubernetes import config

        return config.new_client_from_config(config_file=str(self._as(user, groups)))

    async def aio_client(self, user: str | None = None, groups: Sequence[str] = ()) -> aio_client.ApiClient:
        """Return the same for asyncio; close it, or use it with `async with await …`."""
        from kubernetes.aio import config

        return await config.new_client_from_config(config_file=str(self._as(user, groups)))

    def _as(self, user: str | None, groups: Sequence[str]) -> Path:
        return self.kubeconfig if user is None else self.kubeconfig_of(user, groups)


@pytest.fixture(scope="session")
def api_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiServer]:
    """Start etcd and kube-apiserver. Without controllers there is no garbage collection or namespace deletion."""
    yield from _serve(tmp_path_factory.mktemp("api-server"), controllers=False)


@pytest.fixture(scope="session")
def api_server_with_controllers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiServer]:
    """Start the controller manager too: Jobs make pods (which never run), and children are deleted with their owner."""
    yield from _serve(tmp_path_factory.mktemp("api-server"), controllers=True)


@pytest.fixture
def api_namespace(api_server: ApiServer) -> str:
    """Create a namespace in `api_server`."""
    return _new_namespace(api_server)


@pytest.fixture
def new_api_namespace(api_server: ApiServer) -> Callable[[], str]:
    """Return a function that creates namespaces in `api_server`."""
    return lambda: _new_namespace(api_server)


def require(names: Sequence[str]) -> None:
    """Skip the test when tools are missing; fail it in CI."""
    absent = tools.missing(names)
    if absent:
        reason = f"{', '.join(absent)} not built: run `make cluster-tools`"
        if os.environ.get("CI") == "true":
            pytest.fail(f"{reason} (CI skips no test)")
        pytest.skip(reason)


def _serve(directory: Path, *, controllers: bool) -> Iterator[ApiServer]:
    require(
        [name for name in tools.API_SERVER if name != "kubectl" and (controllers or name != "kube-controller-manager")]
    )
    began = time.monotonic()
    plane = control_plane.start(directory, controllers=controllers, with_parent=True)
    try:
        yield ApiServer(plane, time.monotonic() - began)
    finally:
        plane.stop()


def _new_namespace(server: ApiServer) -> str:
    from kubernetes import client

    name = f"test-{uuid.uuid4().hex[:10]}"
    with server.client() as connection:
        client.CoreV1Api(connection).create_namespace({"metadata": {"name": name}})
    return name
