"""Fixtures with a real API server and no node: schemas, CEL, server-side apply, RBAC and watches as in production.

There is no kubelet, so no pod runs. Without the binaries a test is skipped with a reason; in CI (CI=true) it fails.
"""

from __future__ import annotations

import os
import signal
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from native_cluster import control_plane, daemons, tools

if TYPE_CHECKING:  # these take a second to import, which every run of pytest would pay
    from kubernetes import client
    from kubernetes.aio import client as aio_client


_STARTER = ThreadPoolExecutor(1)


@dataclass(frozen=True)
class ApiServer:
    """A running API server.

    Args:
        plane: its processes and files.
        startup_seconds: from the first process to ready.
        restarted: API servers after the first, in the order of their start; the last one runs.
    """

    plane: control_plane.ControlPlane
    startup_seconds: float
    restarted: list[daemons.Daemon] = field(default_factory=list)

    @property
    def kubeconfig(self) -> Path:
        return self.plane.kubeconfig

    def kubeconfig_of(self, user: str, groups: Sequence[str] = ()) -> Path:
        """Return a kubeconfig of a user that RBAC limits, such as system:serviceaccount:<namespace>:<name>.

        The user is authenticated by a certificate.
        """
        return self.plane.kubeconfig_of(user, groups)

    @contextmanager
    def away(self) -> Iterator[Path]:
        """Kill the API server with SIGKILL; its data stays in etcd. When the block ends, it runs again at its address.

        Yields a kubeconfig of another API server with the same data. The two never run at the same time.
        """
        first = [each for each in (*self.plane.daemons, *self.restarted) if each.name == "kube-apiserver"][-1]
        command = Path(f"/proc/{first.pid}/cmdline").read_text().rstrip("\0").split("\0")
        (port,) = control_plane.free_ports(1)
        url = f"https://127.0.0.1:{port}"
        os.kill(first.pid, signal.SIGKILL)
        other = [f"--secure-port={port}" if each.startswith("--secure-port=") else each for each in command]
        second = self._start("kube-apiserver-meanwhile", other, url)
        kubeconfig = self.plane.directory / "kubeconfig-meanwhile"
        kubeconfig.write_text(self.kubeconfig.read_text().replace(self.plane.url, url))
        try:
            yield kubeconfig
        finally:
            second.stop(grace_seconds=0.0)
            self.restarted.append(self._start("kube-apiserver", command, self.plane.url))

    def _start(self, name: str, command: Sequence[str], url: str) -> daemons.Daemon:
        # The kernel kills it with the thread that started it, so that thread must stay.
        started = _STARTER.submit(daemons.start, name, command, self.plane.directory, with_parent=True).result()
        started.wait(control_plane.answers(f"{url}/readyz", self.plane.directory / "ca.crt"), 60.0)
        return started

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
def restricted_api_namespace(api_server: ApiServer) -> str:
    """Create a namespace in `api_server` that enforces Pod Security at level restricted.

    It has the label from the start: Pod Security reads known namespaces from a watch, so a later label is obeyed later.
    """
    return _new_namespace(api_server, {"pod-security.kubernetes.io/enforce": "restricted"})


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
    server = ApiServer(plane, time.monotonic() - began)
    try:
        yield server
    finally:
        for each in server.restarted:
            each.stop()
        plane.stop()


def _new_namespace(server: ApiServer, labels: Mapping[str, str] | None = None) -> str:
    from kubernetes import client

    name = f"test-{uuid.uuid4().hex[:10]}"
    with server.client() as connection:
        client.CoreV1Api(connection).create_namespace({"metadata": {"name": name, "labels": dict(labels or {})}})
    return name
