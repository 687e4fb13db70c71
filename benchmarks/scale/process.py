"""The operator as a process with the chart's settings, and its figures.

Figures come from /proc and its metrics port. A scrape of all games is work for the operator, and counts as its
own.
"""

from __future__ import annotations

import os
import signal
import sys
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path

from native_cluster import daemons
from native_cluster.control_plane import free_ports
from scale.cluster import Cluster

WRITES = ("create", "apply", "patch", "update", "delete")


@dataclass(frozen=True)
class Scrape:
    """Figures of /metrics."""

    reconciles: int
    errors: int
    depth: int
    writes: int
    ready: int
    lists: int
    leads: bool


@dataclass(frozen=True)
class Operator:
    """A running operator.

    Args:
        began: start of its process on the monotonic clock.
    """

    daemon: daemons.Daemon
    metrics: int
    began: float

    def in_step(self) -> bool:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.metrics}/readyz", timeout=5) as answer:
                return bool(answer.status == 200)
        except (urllib.error.URLError, OSError):
            return False

    def scrape(self) -> Scrape:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.metrics}/metrics", timeout=60) as answer:
            lines = answer.read().decode().splitlines()

        def total(name: str, *labels: str) -> int:
            return int(
                sum(
                    float(line.rpartition(" ")[2])
                    for line in lines
                    if line.startswith(name) and all(each in line for each in labels)
                )
            )

        requests = "swarmgame_operator_k8s_requests_total{"
        return Scrape(
            reconciles=total("swarmgame_operator_reconcile_total{", 'result="done"'),
            errors=total("swarmgame_operator_reconcile_total{")
            - total("swarmgame_operator_reconcile_total{", 'result="done"'),
            depth=total("swarmgame_operator_queue_depth "),
            writes=sum(total(requests, f'verb="{verb}"') for verb in WRITES),
            ready=total("swarmgame_condition{", 'type="Ready"', 'status="True"'),
            lists=total("swarmgame_operator_watch_lists{"),
            leads=total("swarmgame_operator_leader ") == 1,
        )

    def memory_mib(self) -> tuple[float, float]:
        """Return the resident memory now and its maximum so far."""
        status = Path(f"/proc/{self.daemon.pid}/status").read_text(encoding="ascii").splitlines()
        figures = {
            line.split(":")[0]: int(line.split()[1]) / 1024 for line in status if line.startswith(("VmRSS", "VmHWM"))
        }
        return figures["VmRSS"], figures["VmHWM"]

    def processor_seconds(self) -> float:
        fields = Path(f"/proc/{self.daemon.pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def leads(self) -> bool:
        try:
            return self.scrape().leads
        except (urllib.error.URLError, OSError):
            return False  # it does not listen yet

    def stop(self) -> float:
        """Terminate it. Return the seconds until it had ended."""
        began = time.monotonic()
        self.daemon.stop(grace_seconds=30.0)
        return time.monotonic() - began

    def kill(self) -> None:
        """Kill it, so that it cannot release its Lease."""
        os.kill(self.daemon.pid, signal.SIGKILL)


def start(cluster: Cluster, name: str, **settings: str) -> Operator:
    """Start an operator, without waiting for it.

    Args:
        cluster: where it runs.
        name: of its log in the cluster's directory.
        settings: further variables, without their prefix.
    """
    metrics, probes = free_ports(2)
    environment = {
        "KUBECONFIG": str(cluster.operator_kubeconfig),
        "SWARMGAME_OPERATOR_METRICS_PORT": str(metrics),
        "SWARMGAME_OPERATOR_PROBE_HOST": "127.0.0.1",
        "SWARMGAME_OPERATOR_PROBE_PORT": str(probes),
        **{f"SWARMGAME_OPERATOR_{name}": value for name, value in settings.items()},
    }
    began = time.monotonic()
    daemon = daemons.start(
        name,
        [sys.executable, "-m", "swarmgame_operator.main"],
        cluster.directory,
        environment=environment,
        with_parent=True,
    )
    return Operator(daemon, metrics, began)
