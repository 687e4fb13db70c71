"""The control plane as processes on this host: etcd, the API server, and on request controller manager and scheduler.

Without a node it serves the tests on an API server, where pods never run. It listens on free ports and writes into one
directory; `start` returns when the API server is ready.
"""

from __future__ import annotations

import fcntl
import os
import random
import socket
import ssl
import tempfile
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from native_cluster import daemons
from native_cluster.authority import Authority, signing_key, write_private
from native_cluster.tools import tool

SERVICES = "10.96.0.0/16"
"""Addresses of Services; the first is the API server's, the tenth the DNS server's."""
API_SERVICE = "10.96.0.1"
_READY_SECONDS = 60.0
_PORTS = range(20_000, 30_000)
"""Below node ports (30,000) and those that the kernel gives to clients (32,768)."""
_LOCKS = Path(tempfile.gettempdir()) / f"swarmgame-ports-{os.getuid()}"
_RESERVED: list[TextIO] = []
"""Open files, whose locks end with this process."""


@dataclass(frozen=True)
class ControlPlane:
    """A running control plane.

    Args:
        url: of the API server.
        kubeconfig: an administrator's (group system:masters, which RBAC does not limit).
        authority: issues further kubeconfigs.
        directory: of its files.
        daemons: in the order of their start.
    """

    url: str
    kubeconfig: Path
    authority: Authority
    directory: Path
    daemons: tuple[daemons.Daemon, ...]

    def kubeconfig_of(self, user: str, groups: Sequence[str] = ()) -> Path:
        """Return a user's kubeconfig, limited by RBAC.

        A service account is system:serviceaccount:<namespace>:<name>.
        """
        name = "".join(letter if letter.isalnum() else "-" for letter in "-".join([user, *groups]))
        return self.authority.kubeconfig(self.directory / f"kubeconfig-{name}", self.url, user, groups)

    def stop(self) -> None:
        for daemon in reversed(self.daemons):
            daemon.stop()


def start(
    directory: Path,
    *,
    controllers: bool = False,
    scheduler: bool = False,
    address: str = "127.0.0.1",
    with_parent: bool = False,
    api_server_options: Sequence[str] = (),
) -> ControlPlane:
    """Start a control plane.

    Args:
        directory: for data, certificates and logs; created, and expected to be empty.
        controllers: run the controller manager too: garbage collection, Jobs, Deployments, deletion of namespaces.
        scheduler: run the scheduler too.
        address: to listen on; pods can reach the API server only if it is not loopback.
        with_parent: all processes die with this one.
        api_server_options: further flags of kube-apiserver.

    Raises:
        NotBuilt: a binary is missing.
        DaemonFailed: a process did not start; the message has the end of its log.
    """
    directory.mkdir(parents=True, exist_ok=True)
    (etcd_port, peer_port, api_port, manager_port, scheduler_port) = free_ports(5)
    started: list[daemons.Daemon] = []

    def launch(name: str, arguments: Sequence[str]) -> daemons.Daemon:
        started.append(daemons.start(name, [tool(name), *arguments], directory, with_parent=with_parent))
        return started[-1]

    authority = Authority()
    write_certificates(authority, directory, address)
    url = f"https://{address}:{api_port}"
    try:
        etcd = launch("etcd", etcd_arguments(directory, etcd_port, peer_port))
        etcd.wait(answers(f"http://127.0.0.1:{etcd_port}/health"), _READY_SECONDS)
        arguments = api_server_arguments(directory, address, api_port, etcd_port, controllers=controllers)
        server = launch("kube-apiserver", [*arguments, *api_server_options])
        admin = authority.kubeconfig(directory / "kubeconfig", url, "admin", ["system:masters"])
        server.wait(answers(f"{url}/readyz", directory / "ca.crt"), _READY_SECONDS)
        if controllers:
            authority.kubeconfig(directory / "kubeconfig-manager", url, "system:kube-controller-manager")
            launch("kube-controller-manager", manager_arguments(directory, manager_port)).wait(
                answers(f"https://127.0.0.1:{manager_port}/healthz"), _READY_SECONDS
            )
        if scheduler:
            authority.kubeconfig(directory / "kubeconfig-scheduler", url, "system:kube-scheduler")
            launch("kube-scheduler", scheduler_arguments(directory, scheduler_port)).wait(
                answers(f"https://127.0.0.1:{scheduler_port}/healthz"), _READY_SECONDS
            )
    except BaseException:
        for daemon in reversed(started):
            daemon.stop(grace_seconds=1.0)
        raise
    return ControlPlane(url, admin, authority, directory, tuple(started))


def write_certificates(authority: Authority, directory: Path, address: str) -> None:
    """Write the authority, the API server's certificate, and the key that signs service account tokens."""
    authority.certificate_and_key.write(directory, "ca")
    names = (
        "kubernetes",
        "kubernetes.default",
        "kubernetes.default.svc",
        "kubernetes.default.svc.cluster.local",
        "localhost",
    )
    authority.issue("kube-apiserver", hosts=(*names, "127.0.0.1", address, API_SERVICE)).write(directory, "apiserver")
    authority.issue("kube-apiserver-kubelet-client", ["system:masters"]).write(directory, "apiserver-kubelet")
    authority.issue("front-proxy-client").write(directory, "front-proxy")
    write_private(directory / "service-accounts.key", signing_key())


def etcd_arguments(directory: Path, port: int, peer_port: int) -> list[str]:
    """Return etcd's flags. It does not sync to disk: a crash of the machine may lose the data of a test."""
    return [
        f"--data-dir={directory / 'etcd'}",
        f"--listen-client-urls=http://127.0.0.1:{port}",
        f"--advertise-client-urls=http://127.0.0.1:{port}",
        f"--listen-peer-urls=http://127.0.0.1:{peer_port}",
        f"--initial-advertise-peer-urls=http://127.0.0.1:{peer_port}",
        f"--initial-cluster=default=http://127.0.0.1:{peer_port}",
        "--unsafe-no-fsync",
        "--log-level=warn",
    ]


def api_server_arguments(directory: Path, address: str, port: int, etcd_port: int, *, controllers: bool) -> list[str]:
    """Return the API server's flags, with Node and RBAC authorisation as in production.

    Without controllers no service accounts are made, so the admission plugin that requires them is off.
    """
    return [
        f"--etcd-servers=http://127.0.0.1:{etcd_port}",
        f"--bind-address={address}",
        f"--secure-port={port}",
        *([] if address == "127.0.0.1" else [f"--advertise-address={address}"]),
        *(["--endpoint-reconciler-type=none"] if address == "127.0.0.1" else []),
        f"--service-cluster-ip-range={SERVICES}",
        "--authorization-mode=Node,RBAC",
        "--allow-privileged=true",
        f"--client-ca-file={directory / 'ca.crt'}",
        f"--tls-cert-file={directory / 'apiserver.crt'}",
        f"--tls-private-key-file={directory / 'apiserver.key'}",
        f"--kubelet-client-certificate={directory / 'apiserver-kubelet.crt'}",
        f"--kubelet-client-key={directory / 'apiserver-kubelet.key'}",
        "--kubelet-preferred-address-types=InternalIP,Hostname",
        f"--requestheader-client-ca-file={directory / 'ca.crt'}",
        "--requestheader-allowed-names=front-proxy-client",
        "--requestheader-username-headers=X-Remote-User",
        "--requestheader-group-headers=X-Remote-Group",
        "--requestheader-extra-headers-prefix=X-Remote-Extra-",
        f"--proxy-client-cert-file={directory / 'front-proxy.crt'}",
        f"--proxy-client-key-file={directory / 'front-proxy.key'}",
        "--service-account-issuer=https://kubernetes.default.svc.cluster.local",
        f"--service-account-key-file={directory / 'service-accounts.key'}",
        f"--service-account-signing-key-file={directory / 'service-accounts.key'}",
        "--enable-admission-plugins=NodeRestriction",
        *([] if controllers else ["--disable-admission-plugins=ServiceAccount"]),
        "--v=0",
    ]


def manager_arguments(directory: Path, port: int) -> list[str]:
    """Return the controller manager's flags: every controller, each with the rights of its service account."""
    kubeconfig = directory / "kubeconfig-manager"
    return [
        *(f"--{each}={kubeconfig}" for each in ("kubeconfig", "authentication-kubeconfig", "authorization-kubeconfig")),
        "--bind-address=127.0.0.1",
        f"--secure-port={port}",
        "--authorization-always-allow-paths=/healthz",
        "--leader-elect=false",
        "--use-service-account-credentials=true",
        f"--service-account-private-key-file={directory / 'service-accounts.key'}",
        f"--root-ca-file={directory / 'ca.crt'}",
        f"--cluster-signing-cert-file={directory / 'ca.crt'}",
        f"--cluster-signing-key-file={directory / 'ca.key'}",
        "--node-monitor-grace-period=40s",
    ]


def scheduler_arguments(directory: Path, port: int) -> list[str]:
    """Return the scheduler's flags."""
    kubeconfig = directory / "kubeconfig-scheduler"
    return [
        *(f"--{each}={kubeconfig}" for each in ("kubeconfig", "authentication-kubeconfig", "authorization-kubeconfig")),
        "--bind-address=127.0.0.1",
        f"--secure-port={port}",
        "--authorization-always-allow-paths=/healthz",
        "--leader-elect=false",
    ]


def free_ports(count: int) -> list[int]:
    """Reserve ports of this host that are free now, for as long as this process lives.

    A server binds its port seconds after this call. Another process that calls this meanwhile gets other ports: each
    port has a file that its owner locks.

    Raises:
        OSError: fewer ports are left.
    """
    _LOCKS.mkdir(mode=0o700, exist_ok=True)
    found: list[int] = []
    for port in random.SystemRandom().sample(_PORTS, len(_PORTS)):  # no seed, which processes could share
        if len(found) == count:
            break
        if _reserve(port):
            found.append(port)
    if len(found) < count:
        raise OSError(f"{count} free ports are needed, and {len(found)} of {_PORTS[0]} to {_PORTS[-1]} are free")
    return found


def _reserve(port: int) -> bool:
    """Lock a port's file, and return whether the port is this process's and free."""
    lock = (_LOCKS / str(port)).open("w")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        with socket.socket() as probe:
            probe.bind(("", port))
    except OSError:  # reserved, or bound by a program that reserves nothing
        lock.close()
        return False
    _RESERVED.append(lock)
    return True


def answers(url: str, authority: Path | None = None) -> Callable[[], bool]:
    """Return a function that checks whether a health address answers 200.

    Without an authority the certificate is not verified: the component signs its own, and runs on this host.
    """
    context = ssl.create_default_context(cafile=str(authority)) if authority else ssl._create_unverified_context()

    def probe() -> bool:
        try:
            with urllib.request.urlopen(url, timeout=2, context=context if url.startswith("https") else None) as answer:
                return bool(answer.status == 200)
        except (urllib.error.URLError, OSError):
            return False

    return probe
