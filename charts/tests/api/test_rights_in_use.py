"""The operator runs with exactly the chart's settings and rights, and no request of it is refused."""

from __future__ import annotations

import copy
import os
import re
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from api_servers import ApiServer
from kubernetes import client
from polling import until
from rendered import CHARTS, NAMESPACE, environment, render

from native_cluster import control_plane

GAME = yaml.safe_load((CHARTS.parent / "examples" / "01-quickstart" / "game.yaml").read_text())
GAME["spec"] |= {
    "coordination": {"mode": "Dev"},
    "bootnode": {"expose": "NodePort"},
    "storage": {"checkpoints": {"claimTemplate": {"spec": {"resources": {"requests": {"storage": "1Gi"}}}}}},
}
"""A game with every kind of child."""


@contextmanager
def operator(server: ApiServer, directory: Path) -> Iterator[Callable[[], str]]:
    """Run an operator as the chart's Deployment does; yields a function that returns the text of its /metrics."""
    (metrics, probes) = control_plane.free_ports(2)
    variables = environment(render(values={"replicaCount": 2}).one("Deployment"))
    variables |= {"SWARMGAME_OPERATOR_METRICS_PORT": str(metrics), "SWARMGAME_OPERATOR_PROBE_PORT": str(probes)}
    variables["KUBECONFIG"] = str(server.kubeconfig_of(f"system:serviceaccount:{NAMESPACE}:swarmgame"))
    settings = {name: value for name, value in variables.items() if isinstance(value, str)}
    with (directory / "operator.log").open("w") as log:
        command = [str(Path(sys.executable).parent / "swarmgame-operator")]
        process = subprocess.Popen(
            command, env={"PATH": os.environ["PATH"], **settings}, stdout=log, stderr=subprocess.STDOUT
        )

    def figures() -> str:
        assert process.poll() is None, (directory / "operator.log").read_text()
        try:
            return urllib.request.urlopen(f"http://127.0.0.1:{metrics}/metrics", timeout=5).read().decode()
        except urllib.error.URLError:
            return ""

    try:
        yield figures
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0, (directory / "operator.log").read_text()
    finally:
        process.kill()
        process.wait()


def counted(figures: str, metric: str, /, **labels: str) -> float:
    """Return the sum of a metric's samples with these labels."""
    lines = re.findall(rf"^{metric}{{(.*)}} (\S+)$", figures, re.MULTILINE)
    return sum(
        float(value) for found, value in lines if all(f'{label}="{text}"' in found for label, text in labels.items())
    )


def test_a_game_is_set_up_scaled_repaired_suspended_and_deleted_without_one_refusal(
    installed: ApiServer, definition: Callable[[], Any], tmp_path: Path
) -> None:
    assert definition()
    with installed.client() as administrator, operator(installed, tmp_path) as figures:
        games, batch, core = (
            client.CustomObjectsApi(administrator),
            client.BatchV1Api(administrator),
            client.CoreV1Api(administrator),
        )
        core.create_namespace({"metadata": {"name": "in-use"}})
        where = ("swarmgame.dev", "v1alpha1", "in-use", "swarmgames")

        def jobs() -> dict[str, Any]:
            return {job.metadata.name: job.spec for job in batch.list_namespaced_job("in-use").items}

        def created() -> bool:
            try:
                games.create_namespaced_custom_object(*where, copy.deepcopy(GAME))
            except client.ApiException as refused:  # the kind is served a moment after its definition is Established
                if refused.status != 404:
                    raise
                return False
            return True

        until(created)
        until(lambda: "quickstart-peers" in jobs(), 60, seen=lambda: (tmp_path / "operator.log").read_text()[-3000:])
        games.patch_namespaced_custom_object(*where, "quickstart", {"spec": {"peers": {"replicas": 6}}})
        until(lambda: jobs()["quickstart-peers"].parallelism == 6)
        core.delete_namespaced_config_map("quickstart-game", "in-use")
        until(
            lambda: [
                each
                for each in core.list_namespaced_config_map("in-use").items
                if each.metadata.name == "quickstart-game"
            ]
        )
        games.patch_namespaced_custom_object(*where, "quickstart", {"spec": {"suspend": True}})
        until(lambda: "quickstart-peers" not in jobs())
        events = client.EventsV1Api(administrator)
        until(lambda: events.list_namespaced_event("in-use", field_selector="regarding.kind=SwarmGame").items)
        games.delete_namespaced_custom_object(*where, "quickstart")

        def without_the_game() -> str:
            text = figures()  # empty while it does not answer
            return text if counted(text, "swarmgame_info", name="quickstart") == 0 else ""

        answer = until(without_the_game)
        # A watch is counted when it ends, and one that is refused ends at once.
        for verb in ("list", "get", "create", "apply", "patch", "delete"):
            assert counted(answer, "swarmgame_operator_k8s_requests_total", verb=verb) > 0, verb
        assert counted(answer, "swarmgame_operator_k8s_requests_total", code="403") == 0
        assert counted(answer, "swarmgame_operator_reconcile_errors_total", reason="Forbidden") == 0
        assert "Forbidden" not in (tmp_path / "operator.log").read_text()  # kopf's own requests are not counted
        lease = client.CoordinationV1Api(administrator).read_namespaced_lease("swarmgame", NAMESPACE)
        assert lease.spec.holder_identity
