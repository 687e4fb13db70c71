"""A peer outside the cluster joins through the bootnode's NodePort, takes part, and leaves.

The NodePort is one that every cluster of the tests makes reachable from this host; kind has a port mapping for it. The
outsider announces this host's address for pods, so that pods reach it where this host has no route to them.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from clusters import P2P_PORT, Cluster, Namespace
from games import Game
from polling import until

pytestmark = pytest.mark.timeout(800)


def test_a_peer_outside_the_cluster_joins_through_the_node_port(
    cluster: Cluster, game: Callable[..., Game], namespace: Namespace, tmp_path: Path
) -> None:
    playing = game()
    playing.wait("Ready", seconds=180)
    playing.wait_for_round(2)
    inside = playing.status["bootnode"]["address"]
    external = f"{playing.name}-bootnode-external"
    chosen = [{"op": "replace", "path": "/spec/ports/0/nodePort", "value": P2P_PORT}]
    namespace.kubectl("patch", "service", external, "--type=json", "-p", json.dumps(chosen))
    until(lambda: f"/tcp/{P2P_PORT}/" in playing.status["bootnode"]["address"], 60, seen=lambda: playing.status)
    assert namespace.get("service", external)["spec"]["ports"][0]["nodePort"] == P2P_PORT  # the operator leaves it
    address = f"/ip4/{cluster.address}/tcp/{P2P_PORT}/p2p/{inside.rsplit('/', 1)[1]}"
    manifest = tmp_path / "game.yaml"
    body = {key: value for key, value in playing.read().items() if key in ("apiVersion", "kind", "spec")}
    manifest.write_text(json.dumps(body | {"metadata": {"name": playing.name}}))
    command = [sys.executable, "-m", "swarmgame", "join", str(manifest), "--initial-peer", address]
    command += [
        "--directory",
        str(tmp_path / "joined"),
        "--announce",
        f"/ip4/{cluster.host}/tcp/31999",
        "--port",
        "31999",
        "--no-report",
    ]
    with (
        (tmp_path / "log").open("w") as log,
        subprocess.Popen(command, stdout=log, stderr=log, env=os.environ | {"OMP_NUM_THREADS": "1"}) as outsider,
    ):
        try:
            until(
                lambda: playing.members(0) == 3,
                150,
                every=0.5,
                seen=lambda: (tmp_path / "log").read_text()[-3000:],
            )
            metrics = tmp_path / "joined"
            until(
                lambda: _shared_rounds(metrics) >= 2,
                120,
                every=0.5,
                seen=lambda: (tmp_path / "log").read_text()[-3000:],
            )
        finally:
            outsider.terminate()
            outsider.wait(60)
    until(lambda: playing.members(0) == 2, 120, every=0.5, seen=namespace.describe)


def _shared_rounds(directory: Path) -> int:
    """Return the number of rounds in which the outsider had other members."""
    lines = [
        json.loads(line)
        for file in directory.rglob("metrics.jsonl")
        for line in file.read_text().splitlines()
        if line.endswith("}")
    ]
    return sum(1 for line in lines if len(line.get("members", ())) >= 3)
