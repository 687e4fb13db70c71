"""What one new game costs the API server: requests by verb and resource, and processor time.

A real API server, and the operator with the chart's settings. This script stands for the controllers and kubelets: it
makes the pods of each Job, and reports them ready one by one within two seconds. Games are applied at a pace, and the
counts are read when all are Ready and nothing is written any more. Counts are the API server's own; only the operator
writes SwarmGames and applies objects. Needs the binaries of `make cluster-tools-api`.

    python benchmarks/operator_requests.py [--games 60] [--peers 8] [--pace 4] [--smoke]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import re
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import psutil
import yaml

sys.path.insert(0, str(Path(__file__).parents[1] / "hack" / "native-cluster"))

from harness import machine, publish, summary
from scale import process
from scale.client import ROLE_LABEL, Client, apply_at, connected, keys
from scale.cluster import NAMESPACES, OPERATOR, POD_ADDRESS, Cluster
from scale.peers import peers

from native_cluster import control_plane
from swarmgame_operator.api import DEPLOYMENT, JOB, METADATA, POD, Object, ResourceKind

CRD = Path(__file__).parents[1] / "crds" / "swarmgame.yaml"
NAMESPACE = ResourceKind("Namespace", "v1", "namespaces")
BINDING = ResourceKind("ClusterRoleBinding", "rbac.authorization.k8s.io/v1", "clusterrolebindings")
KINDS = ("swarmgames", "secrets", "configmaps", "services", "networkpolicies", "deployments", "jobs", "events")
VERBS = ("GET", "POST", "PUT", "PATCH", "APPLY", "DELETE")
LABELS = re.compile(r'(\w+)="([^"]*)"')
INDEX = "batch.kubernetes.io/job-completion-index"
LIMIT_SECONDS = 600.0


def requests(text: str) -> Counter[str]:
    """Return the number of requests by verb and resource, from the API server's metrics."""
    counts: Counter[str] = Counter()
    for line in text.splitlines():
        if line.startswith("apiserver_request_total{"):
            labels = dict(LABELS.findall(line))
            if labels["verb"] in VERBS and labels["resource"] in KINDS:
                resource = "/".join(part for part in (labels["resource"], labels["subresource"]) if part)
                counts[f"{labels['verb']} {resource}"] += int(float(line.rpartition(" ")[2]))
    return counts


class Kubelets:
    """Makes and runs the pods of every game, with a delay that differs from pod to pod."""

    def __init__(self, client: Client, seed: int) -> None:
        self._api, self._random = client.api, random.Random(seed)
        self.jobs: dict[tuple[str, str], float] = {}
        """When each Job appeared, by namespace and game."""
        self.own: Counter[str] = Counter()
        """Requests of this class, which are no cost of the operator."""
        self._tasks: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        query = {"watch": "true", "labelSelector": f"{ROLE_LABEL}=peer", "timeoutSeconds": 3600}
        async with self._api.lines(JOB.path(None), query, accept=METADATA) as content:
            while line := await content.readline():
                event = json.loads(line)
                if event["type"] == "ADDED":
                    metadata = event["object"]["metadata"]
                    self.jobs[metadata["namespace"], metadata["name"].removesuffix("-peers")] = time.monotonic()
                    task = asyncio.create_task(self._play(metadata["namespace"], metadata["name"]))
                    self._tasks.add(task)
                    task.add_done_callback(self._tasks.discard)

    async def _play(self, namespace: str, name: str) -> None:
        job = await self._api.get(JOB, namespace, name)
        assert job is not None
        self.own["GET jobs"] += 1
        size = job["spec"]["completions"]
        for index in range(size):
            await self._api.create(POD, namespace, _pod(job, index))
        await self._status(JOB, namespace, name, {"active": size, "ready": 0, "startTime": _now()})
        await asyncio.sleep(self._random.uniform(0.1, 1.0))
        bootnode = f"{name.removesuffix('-peers')}-bootnode"
        counts = {"replicas": 1, "readyReplicas": 1, "updatedReplicas": 1, "availableReplicas": 1}
        await self._status(DEPLOYMENT, namespace, bootnode, {**counts, "observedGeneration": 1})
        await asyncio.gather(*(self._start(namespace, f"{name}-{index}") for index in range(size)))
        await self._status(JOB, namespace, name, {"ready": size})

    async def _start(self, namespace: str, name: str) -> None:
        await asyncio.sleep(self._random.uniform(0.1, 2.0))
        now = _now()
        ready = {"name": "peer", "image": "x", "imageID": "", "ready": True, "restartCount": 0, "started": True}
        kinds = ("PodScheduled", "Initialized", "ContainersReady", "Ready")
        await self._status(
            POD,
            namespace,
            name,
            {
                "phase": "Running",
                "startTime": now,
                "podIP": POD_ADDRESS,
                "podIPs": [{"ip": POD_ADDRESS}],
                "conditions": [{"type": kind, "status": "True", "lastTransitionTime": now} for kind in kinds],
                "containerStatuses": [{**ready, "state": {"running": {"startedAt": now}}}],
            },
        )

    async def _status(self, kind: ResourceKind, namespace: str, name: str, status: Object) -> None:
        self.own[f"PATCH {kind.plural}/status"] += 1
        await self._api.merge(kind, namespace, name, {"status": status}, subresource="status")


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def _pod(job: Object, index: int) -> Object:
    template, metadata = job["spec"]["template"], job["metadata"]
    owner = {"apiVersion": JOB.api, "kind": JOB.name, "name": metadata["name"], "uid": metadata["uid"]}
    own = template["metadata"]
    return {
        "metadata": {
            "name": f"{metadata['name']}-{index}",
            "labels": {**own["labels"], INDEX: str(index)},
            "annotations": {**own.get("annotations", {}), INDEX: str(index)},
            "ownerReferences": [{**owner, "controller": True, "blockOwnerDeletion": True}],
        },
        "spec": {**template["spec"], "nodeName": "node"},
    }


async def prepare(client: Client) -> None:
    for name in NAMESPACES:
        await client.api.create(NAMESPACE, None, {"metadata": {"name": name}})
    user = {"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": OPERATOR}
    role = {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "cluster-admin"}
    await client.api.create(BINDING, None, {"metadata": {"name": "operator"}, "roleRef": role, "subjects": [user]})
    await client.create(yaml.safe_load(CRD.read_text(encoding="utf-8")))
    await asyncio.sleep(3.0)  # until the API server serves it


async def settle(operator: process.Operator, games: int) -> None:
    """Wait until every game is Ready, and nothing was written for ten seconds."""
    end, before, quiet = time.monotonic() + LIMIT_SECONDS, -1, 0
    while quiet < 5:
        found = await asyncio.to_thread(operator.scrape)
        quiet = quiet + 1 if found.ready == games and found.writes == before else 0
        before = found.writes
        if time.monotonic() > end:
            raise SystemExit(f"{found.ready} of {games} games are Ready after {LIMIT_SECONDS:.0f} s")
        await asyncio.sleep(2.0)


async def run(options: argparse.Namespace, directory: Path) -> None:
    began = machine()
    plane = control_plane.start(directory, with_parent=True)
    running = Cluster(plane, plane.kubeconfig_of(OPERATOR, ["system:serviceaccounts"]), directory)
    server = psutil.Process(next(each.pid for each in plane.daemons if each.name == "kube-apiserver"))

    def spent(operator: process.Operator) -> dict[str, float]:
        return {"operator": operator.processor_seconds(), "kube-apiserver": float(sum(server.cpu_times()[:2]))}

    try:
        async with connected(plane.kubeconfig) as client, peers():
            await prepare(client)
            operator = process.start(running, "operator")
            kubelets = Kubelets(client, seed=1)
            playing = asyncio.create_task(kubelets.run())
            try:
                while not await asyncio.to_thread(operator.in_step):
                    await asyncio.sleep(0.1)
                warm = keys(0, 5, prefix="warm")
                await apply_at(client, warm, peers=options.peers, a_second=1.0)
                await settle(operator, len(warm))
                before, used = requests(await client.api.text("/metrics", largest=64 << 20)), spent(operator)
                own = Counter(kubelets.own)
                games = keys(0, options.games)
                _, answered = await apply_at(client, games, peers=options.peers, a_second=options.pace)
                await settle(operator, len(warm) + len(games))
                after = requests(await client.api.text("/metrics", largest=64 << 20))
                processor = {name: each - used[name] for name, each in spent(operator).items()}
                own = kubelets.own - own
            finally:
                playing.cancel()
                await asyncio.gather(playing, return_exceptions=True)
                operator.stop()
    finally:
        plane.stop()
    rows = {name: round(each / options.games, 2) for name, each in (after - before - own).most_common()}
    for name, row in rows.items():
        print(f"{row:8.2f} a game  {name}", file=sys.stderr)
    waits = [max(0.0, kubelets.jobs[key] - answered[key]) for key in games]
    body: dict[str, Any] = {
        "claims": [],
        "work": {"games": options.games, "peers": options.peers, "pace_a_second": options.pace},
        "requests_a_game": rows,
        "processor_ms_a_game": {name: round(1000 * each / options.games, 1) for name, each in processor.items()},
        "apply_to_job_seconds": summary(waits, digits=3),
    }
    publish("operator_requests", body, began=began, smoke=options.smoke)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--games", type=int, default=60)
    parser.add_argument("--peers", type=int, default=8)
    parser.add_argument("--pace", type=float, default=4.0)
    parser.add_argument("--smoke", action="store_true", help="nothing written")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="swarmgame-requests-") as folder:
        asyncio.run(run(options, Path(folder)))


if __name__ == "__main__":
    main()
