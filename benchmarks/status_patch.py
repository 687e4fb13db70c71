"""What a status update of a game costs the API server, by the CRD's parts and by the form of the request.

Each arm has a CRD of its own in one real API server, with a watch of whole games and one of their metadata, as the
operator has. Arms take turns; each updates the counts and a condition's text of the same small games, one request at
a time. Measured are the API server's processor time and the answer's latency.

    python benchmarks/status_patch.py [--games 10] [--updates 60] [--turns 6] [--smoke]
"""

from __future__ import annotations

import argparse
import asyncio
import copy
import json
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import yaml

sys.path.insert(0, str(Path(__file__).parents[1] / "hack" / "native-cluster"))

from harness import machine, publish, summary
from scale.client import connected, manifest

from native_cluster import control_plane
from swarmgame_operator.api import APPLY, MERGE, METADATA, Api, Object, ResourceKind

CRD = Path(__file__).parents[1] / "crds" / "swarmgame.yaml"
DEFINITION = ResourceKind("CustomResourceDefinition", "apiextensions.k8s.io/v1", "customresourcedefinitions")
NAMESPACE = "default"
Change = Callable[[dict[str, Any]], None]


def everywhere(schema: Any, *names: str) -> None:
    """Remove keys from a schema and everything below it; a property of that name stays."""
    if isinstance(schema, list):
        for each in schema:
            everywhere(each, *names)
    elif isinstance(schema, dict):
        for name in names:
            schema.pop(name, None)
        for key, below in schema.items():
            for each in below.values() if key == "properties" else [below]:
                everywhere(each, *names)


def no_schema_of_spec(version: dict[str, Any]) -> None:
    root = version["schema"]["openAPIV3Schema"]
    root["properties"]["spec"] = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
    version["subresources"].pop("scale")


def atomic_status(version: dict[str, Any]) -> None:
    """Make one field of the status for field managers."""
    version["schema"]["openAPIV3Schema"]["properties"]["status"]["x-kubernetes-map-type"] = "atomic"


PARTS: dict[str, Change] = {
    "whole": lambda version: None,
    "no descriptions": lambda version: everywhere(version["schema"], "description"),
    "no rules": lambda version: everywhere(version["schema"], "x-kubernetes-validations"),
    "no columns": lambda version: version.pop("additionalPrinterColumns") and None,
    "no patterns": lambda version: everywhere(version["schema"], "pattern"),
    "atomic status": atomic_status,
    "no schema of the spec": no_schema_of_spec,
}


@dataclass
class Arm:
    """A CRD and a form of request.

    Args:
        update: changes the status; gets a game as it was last answered, and the new status.
    """

    kind: ResourceKind
    update: Callable[[Api, ResourceKind, Object, Object], Awaitable[Object]]
    games: dict[str, Object] = field(default_factory=dict)
    latency_ms: list[float] = field(default_factory=list)
    processor_ms: list[float] = field(default_factory=list)


def status(number: int) -> Object:
    """Return the status of a game of eight peers, as the operator writes it."""
    texts = {"Accepted": "Valid", "Registered": "NotRequired", "Ready": "WaitingForPeers", "Progressing": "ScalingUp"}
    texts |= {"Degraded": "AsExpected", "Suspended": "Resumed"}
    time_then = "2026-01-31T12:00:00Z"
    conditions = [
        {
            "type": kind,
            "status": "True",
            "reason": reason,
            "message": f"{number} of 8 peers are ready; the others start.",
            "observedGeneration": 1,
            "lastTransitionTime": time_then,
        }
        for kind, reason in texts.items()
    ]
    counts = dict.fromkeys(("registered", "succeeded", "failed", "terminating"), 0)
    return {
        "observedGeneration": 1,
        "startTime": time_then,
        "selector": "app.kubernetes.io/managed-by=swarmgame-operator,swarmgame.dev/game=game,swarmgame.dev/role=peer",
        "replicas": 8,
        "peers": {"desired": 8, "active": 8, "ready": number, **counts},
        "bootnode": {"ready": True, "address": f"/dns4/game-bootnode.team-00.svc/tcp/31000/p2p/16Uiu2HAm{'1' * 44}"},
        "progress": {"round": 3, "stage": 0, "maxRounds": 10, "percentage": 30, "lastUpdatedTime": time_then},
        "jobName": "game-peers",
        "templateHash": "0123456789abcdef",
        "conditions": conditions,
    }


async def merge(api: Api, kind: ResourceKind, game: Object, after: Object) -> Object:
    patch = {name: value for name, value in after.items() if (game.get("status") or {}).get(name) != value}
    uid = game["metadata"]["uid"]
    return await api.merge(
        kind, NAMESPACE, game["metadata"]["name"], {"metadata": {"uid": uid}, "status": patch}, subresource="status"
    )


async def merge_metadata(api: Api, kind: ResourceKind, game: Object, after: Object) -> Object:
    """Send the same patch, and get the metadata alone as the answer."""
    patch = {name: value for name, value in after.items() if (game.get("status") or {}).get(name) != value}
    path = kind.path(NAMESPACE, game["metadata"]["name"], "status")
    body = {"metadata": {"uid": game["metadata"]["uid"]}, "status": patch}
    answer = await api._call("patch", "PATCH", path, body=body, content=MERGE, accept=METADATA)
    return {**game, "metadata": answer["metadata"], "status": after}


async def replace(api: Api, kind: ResourceKind, game: Object, after: Object) -> Object:
    path = kind.path(NAMESPACE, game["metadata"]["name"], "status")
    return await api._call("update", "PUT", path, body={**game, "status": after})


async def replace_without_managers(api: Api, kind: ResourceKind, game: Object, after: Object) -> Object:
    """Replace the status, and send no managedFields: the API server keeps its own."""
    metadata = {name: value for name, value in game["metadata"].items() if name != "managedFields"}
    path = kind.path(NAMESPACE, game["metadata"]["name"], "status")
    return await api._call("update", "PUT", path, body={**game, "metadata": metadata, "status": after})


async def apply(api: Api, kind: ResourceKind, game: Object, after: Object) -> Object:
    """Apply the whole status server-side."""
    metadata = {"name": game["metadata"]["name"], "uid": game["metadata"]["uid"]}
    body = {"apiVersion": kind.api, "kind": kind.name, "metadata": metadata, "status": after}
    query = {"fieldManager": "operator", "force": "true"}
    path = kind.path(NAMESPACE, metadata["name"], "status")
    return await api._call("apply", "PATCH", path, query=query, body=body, content=APPLY)


FORMS = {"merge": merge, "merge, metadata answered": merge_metadata, "replace": replace, "apply": apply}
FORMS["replace, no managers sent"] = replace_without_managers


async def arms(api: Api, games: int) -> dict[str, Arm]:
    """Create the CRDs and the games."""
    wanted: list[tuple[str, Change, Any]] = [(f"merge, {name}", change, merge) for name, change in PARTS.items()]
    wanted += [(f"{name}, whole", PARTS["whole"], form) for name, form in FORMS.items() if form is not merge]
    found: dict[str, Arm] = {}
    definition = yaml.safe_load(CRD.read_text(encoding="utf-8"))
    for number, (name, change, form) in enumerate(wanted):
        body = copy.deepcopy(definition)
        group = f"arm{number}.swarmgame.dev"
        body["metadata"]["name"] = f"swarmgames.{group}"
        body["spec"]["group"] = group
        body["spec"]["names"].pop("shortNames")
        body["spec"]["names"].pop("categories")
        change(body["spec"]["versions"][0])
        await api.create(DEFINITION, None, body)
        found[name] = Arm(ResourceKind("SwarmGame", f"{group}/v1alpha1", "swarmgames"), form)
    await asyncio.sleep(10.0)  # until the API server serves them all
    for arm in found.values():
        for number in range(games):
            body = manifest((NAMESPACE, f"game-{number}"), 8) | {"apiVersion": arm.kind.api}
            answer = await api.create(arm.kind, NAMESPACE, body)
            arm.games[answer["metadata"]["name"]] = await arm.update(api, arm.kind, answer, status(0))
    return found


async def watch(api: Api, kind: ResourceKind, accept: str) -> None:
    async with api.lines(kind.path(None), {"watch": "true", "timeoutSeconds": 3600}, accept=accept) as content:
        while line := await content.readline():
            json.loads(line)


async def turn(api: Api, arm: Arm, server: psutil.Process, updates: int, first: int) -> None:
    before = sum(server.cpu_times()[:2])
    for number in range(updates):
        name = f"game-{number % len(arm.games)}"
        after = status(first + number)
        began = time.perf_counter()
        arm.games[name] = await arm.update(api, arm.kind, arm.games[name], after)
        arm.latency_ms.append(1000 * (time.perf_counter() - began))
    arm.processor_ms.append(1000 * (sum(server.cpu_times()[:2]) - before) / updates)


async def run(options: argparse.Namespace, directory: Path) -> None:
    began = machine()
    plane = control_plane.start(directory, with_parent=True)
    server = psutil.Process(next(each.pid for each in plane.daemons if each.name == "kube-apiserver"))
    try:
        async with connected(plane.kubeconfig) as client:
            found = await arms(client.api, options.games)
            watches = [
                asyncio.create_task(watch(client.api, arm.kind, accept))
                for arm in found.values()
                for accept in ("application/json", METADATA)
            ]
            await asyncio.sleep(2.0)
            for number in range(options.turns + 1):
                for arm in found.values():
                    await turn(client.api, arm, server, options.updates, 1 + number * options.updates)
                if number == 0:  # a warm-up
                    for arm in found.values():
                        arm.latency_ms.clear()
                        arm.processor_ms.clear()
                print(f"turn {number} of {options.turns}", file=sys.stderr, flush=True)
            for task in watches:
                task.cancel()
            await asyncio.gather(*watches, return_exceptions=True)
    finally:
        plane.stop()
    rows = {
        name: {
            "processor_ms": summary(arm.processor_ms, digits=2),
            "latency_ms": summary(arm.latency_ms, digits=2),
            "managed_fields_bytes": len(json.dumps(arm.games["game-0"]["metadata"].get("managedFields"))),
        }
        for name, arm in found.items()
    }
    for name, row in rows.items():
        spent, waited = row["processor_ms"]["median"], row["latency_ms"]["median"]  # type: ignore[index]
        print(f"{spent:8.2f} ms processor, {waited:8.2f} ms latency  {name}", file=sys.stderr)
    work = {"games": options.games, "updates_a_turn": options.updates, "turns": options.turns}
    publish("status_patch", {"claims": [], "work": work, "arms": rows}, began=began, smoke=options.smoke)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--games", type=int, default=10)
    parser.add_argument("--updates", type=int, default=60)
    parser.add_argument("--turns", type=int, default=6)
    parser.add_argument("--smoke", action="store_true", help="nothing written")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="swarmgame-status-") as folder:
        asyncio.run(run(options, Path(folder)))


if __name__ == "__main__":
    main()
