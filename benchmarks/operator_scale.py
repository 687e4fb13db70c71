"""Thousands of games: a real API server with controllers, kwok's nodes and pods, the chart's settings.

etcd, the API server, the controllers, kwok, the operator and its users share this machine. Games are applied at a
fixed pace. When every game is Ready and no more writes happen, an idle minute and a cold start are measured, while
every game's progress is polled as usual. Larger sizes continue from the smaller ones, in one run.

    python benchmarks/operator_scale.py [--games 2000,4000] [--peers 8] [--pace 20] [--smoke]
"""

from __future__ import annotations

import argparse
import asyncio
import math
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

sys.path.insert(0, str(Path(__file__).parents[1] / "hack" / "native-cluster"))

from harness import claim, machine, publish, summary
from scale import process
from scale.client import Client, apply_at, arrivals, connected, keys
from scale.cluster import NAMESPACES, Cluster, cluster, give_way
from scale.peers import Peers, peers

from native_cluster import control_plane
from swarmgame_operator.api import GAME, JOB, POD

CRD = Path(__file__).parents[1] / "crds" / "swarmgame.yaml"
SMALL, SMALL_PEERS = 5, 4
LIMIT_SECONDS = 1800.0
QUIET_SECONDS = 10.0
LEASE_SECONDS = 15
"""The chart's default."""


def log(what: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {what}", file=sys.stderr, flush=True)


def percentile(samples: Sequence[float], share: float) -> float:
    """Return a percentile by nearest rank."""
    return sorted(samples)[math.ceil(share * len(samples)) - 1] if samples else math.nan


def layer_up(directory: Path) -> float:
    """Return the seconds until etcd and the API server are ready."""
    began = time.monotonic()
    plane = control_plane.start(directory, with_parent=True)
    seconds = time.monotonic() - began
    plane.stop()
    return seconds


async def small_games(client: Client) -> list[float]:
    """Return the seconds from the apply's answer until all pods of a small game exist, one game after the other on an
    idle cluster.
    """
    found = []
    async with arrivals(client, POD) as pods:
        for key in keys(0, SMALL, prefix="small"):
            answered = await client.apply(key, SMALL_PEERS)
            await pods.until([key], SMALL_PEERS, 60.0)
            found.append(pods.times[key][SMALL_PEERS - 1] - answered)
            await asyncio.sleep(2.0)  # idle again
    return found


async def grow(client: Client, first: int, last: int, options: argparse.Namespace) -> dict[str, Any]:
    """Apply games up to a number; return how long each waited for its Job."""
    games = keys(first, last)
    async with arrivals(client, JOB) as jobs:
        began = time.monotonic()
        due, answered = await apply_at(client, games, peers=options.peers, a_second=options.pace)
        applied = time.monotonic() - began
        await jobs.until(games, 1, LIMIT_SECONDS)
        waits = [max(0.0, jobs.times[key][0] - answered[key]) for key in games]
        from_due = [jobs.times[key][0] - due[key] for key in games]
    return {
        "games": len(games),
        "applied_in_seconds": round(applied, 1),
        "apply_to_job_seconds": {**summary(waits, digits=3), "p99": round(percentile(waits, 0.99), 3)},
        "due_to_job_p99_seconds": round(percentile(from_due, 0.99), 3),
    }


async def settle(operator: process.Operator, games: int) -> float:
    """Wait until every game is Ready and no write happened for a while; return the seconds until they were Ready."""
    began = time.monotonic()
    ready, before = 0.0, -1
    while time.monotonic() - began < LIMIT_SECONDS:
        found = await asyncio.to_thread(operator.scrape)
        if found.ready == games and not ready:
            ready = time.monotonic() - began
        if ready and found.writes == before and found.depth == 0:
            return ready
        before = found.writes
        log(
            f"  {found.ready} of {games} ready, {found.writes} writes, {found.depth} queued, "
            f"{operator.memory_mib()[0]:.0f} MiB"
        )
        await asyncio.sleep(QUIET_SECONDS)
    raise SystemExit(f"not settled after {LIMIT_SECONDS:.0f} s")


async def idle(running: Cluster, operator: process.Operator, polled: Peers, seconds: float) -> dict[str, Any]:
    """Measure the operator while no game changes."""
    written = await asyncio.to_thread(running.writes)
    before, processor = await asyncio.to_thread(operator.scrape), operator.processor_seconds()
    requests = polled.requests
    began = time.monotonic()
    await asyncio.sleep(seconds)
    processor, took = operator.processor_seconds() - processor, time.monotonic() - began
    after = await asyncio.to_thread(operator.scrape)
    written = await asyncio.to_thread(running.writes) - written
    return {
        "seconds": round(took, 1),
        "api_server_writes_a_second": round(written / took, 4),
        "writes_a_second": round((after.writes - before.writes) / took, 4),
        "looks_a_second": round((after.reconciles - before.reconciles) / took, 2),
        "progress_questions_a_second": round((polled.requests - requests) / took, 1),
        "processor_share_of_a_core": round(processor / took, 3),
        "resident_mib": round(operator.memory_mib()[0], 1),
    }


async def cold_start(running: Cluster, games: int, name: str) -> tuple[process.Operator, dict[str, Any]]:
    """Start an operator on an unchanged cluster; wait until every game is reconciled and the queue is empty."""
    operator = process.start(running, name)
    while not await asyncio.to_thread(operator.in_step):
        await asyncio.sleep(0.1)
    in_step = time.monotonic() - operator.began
    while True:
        found = await asyncio.to_thread(operator.scrape)
        if found.reconciles >= games and found.depth == 0:
            break
        if time.monotonic() - operator.began > LIMIT_SECONDS:
            raise SystemExit(f"no cold start after {LIMIT_SECONDS:.0f} s: {found}")
        await asyncio.sleep(1.0)
    seconds = time.monotonic() - operator.began
    resident, most = operator.memory_mib()
    return operator, {
        "listed_seconds": round(in_step, 2),
        "seconds": round(seconds, 2),
        "looks": found.reconciles,
        "failed_looks": found.errors,
        "writes": found.writes,
        "processor_seconds": round(operator.processor_seconds(), 1),
        "resident_mib": round(resident, 1),
        "resident_mib_at_most": round(most, 1),
    }


async def measured(
    running: Cluster,
    client: Client,
    operator: process.Operator,
    polled: Peers,
    sizes: tuple[int, int],
    options: argparse.Namespace,
) -> tuple[process.Operator, dict[str, Any]]:
    """Measure one size; return the operator that runs afterwards, and the figures."""
    before, games = sizes
    log(f"{games} games: applying {games - before} at {options.pace} a second")
    await asyncio.to_thread(give_way, running.plane, others=True)
    growth = await grow(client, before, games, options)
    await asyncio.to_thread(give_way, running.plane, others=False)
    log(f"  {growth}")
    games += SMALL
    growth["ready_after_seconds"] = round(await settle(operator, games), 1)
    growth["resident_mib_at_most"] = round(operator.memory_mib()[1], 1)
    log("  idle")
    quiet = await idle(running, operator, polled, options.idle)
    log(f"  {quiet}")
    stopped = operator.stop()
    operator, cold = await cold_start(running, games, f"operator-{games}")
    log(f"  cold start: {cold}")
    await settle(operator, games)
    again = await idle(running, operator, polled, options.idle)
    missing = await client.not_ready()
    if missing:
        raise SystemExit(f"{missing} of {games} games are not Ready in the API server")
    counted = {"swarmgames": await client.count(GAME), "jobs": await client.count(JOB), "pods": await client.count(POD)}
    return operator, {
        "games": games,
        "objects": counted,
        "growth": growth,
        "sigterm_to_exit_seconds": round(stopped, 2),
        "idle": quiet,
        "cold_start": cold,
        "idle_after_it": again,
    }


async def failover(running: Cluster) -> float:
    """Kill the leader of two operators. Return the seconds until the other one leads."""
    lease = {"LEASE_NAMESPACE": NAMESPACES[0], "LEASE_SECONDS": str(LEASE_SECONDS)}
    leader = process.start(running, "leader", **lease)
    while not await asyncio.to_thread(leader.leads):
        await asyncio.sleep(0.1)
    other = process.start(running, "other", **lease)
    while not await asyncio.to_thread(other.in_step):
        await asyncio.sleep(0.1)
    leader.kill()
    began = time.monotonic()
    while not await asyncio.to_thread(other.leads):
        await asyncio.sleep(0.05)
    seconds = time.monotonic() - began
    other.stop()
    return seconds


def claims(small: Sequence[float], up: float, failed: float, sizes: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the claims. Most bounds are for the first size; the others show the growth."""
    found = [
        claim("API server layer up, seconds", up, at_most=10.0),
        claim(
            f"apply → all {SMALL_PEERS} peers' pods made, idle cluster, slowest of {SMALL}, seconds",
            max(small),
            at_most=2.0,
        ),
        claim("failover after SIGKILL, seconds", failed, at_most=LEASE_SECONDS + 2.0),
    ]
    for each in sizes:
        bounded: dict[str, float | None] = {"start": 60.0, "memory": 300.0, "job": 2.0}
        limits = bounded if each is sizes[0] else {"job": 4.0}
        idle_writes = max(each[when]["api_server_writes_a_second"] for when in ("idle", "idle_after_it"))
        most = max(
            each["cold_start"]["resident_mib_at_most"],
            each["growth"]["resident_mib_at_most"],
            each["idle"]["resident_mib"],
        )
        name = f"{each['games']} games"
        found += [
            claim(f"{name}: cold start, seconds", each["cold_start"]["seconds"], at_most=limits.get("start")),
            claim(f"{name}: most memory of the operator, MiB", most, at_most=limits.get("memory")),
            claim(f"{name}: writes a second while idle, at the API server", idle_writes, at_most=0.0),
            claim(f"{name}: SIGTERM → exit, seconds", each["sigterm_to_exit_seconds"], at_most=5.0),
            claim(
                f"{name}: apply → Job, p99, seconds",
                each["growth"]["apply_to_job_seconds"]["p99"],
                at_most=limits.get("job"),
            ),
        ]
    return found


async def run(options: argparse.Namespace, directory: Path) -> None:
    began = machine()
    up = layer_up(directory / "layer")
    log(f"API server layer up in {up:.1f} s")
    with cluster(directory / "cluster") as running:
        async with connected(running.plane.kubeconfig) as client, peers() as polled:
            await client.create(yaml.safe_load(CRD.read_text(encoding="utf-8")))
            await asyncio.sleep(3.0)  # until the API server serves it
            operator = process.start(running, "operator")
            try:
                while not await asyncio.to_thread(operator.in_step):
                    await asyncio.sleep(0.1)
                small = await small_games(client)
                log(f"small games: {[round(each, 3) for each in small]}")
                operator.stop()
                failed = await failover(running)
                log(f"failover in {failed:.1f} s")
                operator = process.start(running, "operator-after-failover")
                while not await asyncio.to_thread(operator.in_step):
                    await asyncio.sleep(0.1)
                sizes: list[dict[str, Any]] = []
                for before, games in zip([0, *options.games], options.games, strict=False):
                    operator, found = await measured(running, client, operator, polled, (before, games), options)
                    sizes.append(found)
                    body = {
                        "claims": claims(small, up, failed, sizes),
                        "pods_a_game": options.peers + 1,
                        "pace_a_second": options.pace,
                        "api_server_layer_up_seconds": round(up, 2),
                        "lease_seconds": LEASE_SECONDS,
                        "failover_seconds": round(failed, 2),
                        "small_game_pods_seconds": [round(each, 3) for each in small],
                        "sizes": sizes,
                    }
                    publish("operator_scale", body, began=began, smoke=options.smoke)
            finally:
                operator.stop()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--games", type=lambda text: [int(each) for each in text.split(",")], default=None)
    parser.add_argument("--peers", type=int, default=8)
    parser.add_argument("--pace", type=float, default=20.0)
    parser.add_argument("--idle", type=float, default=60.0)
    parser.add_argument("--keep", type=Path, help="a new directory for data and logs, kept afterwards")
    parser.add_argument(
        "--smoke",
        action="store_true",
        help="20 games unless --games says otherwise, a short idle time, nothing written",
    )
    options = parser.parse_args()
    options.games = options.games or ([20] if options.smoke else [2000, 4000])
    if options.smoke:
        options.idle = 10.0
    os.environ["ETCD_QUOTA_BACKEND_BYTES"] = str(8 << 30)
    with tempfile.TemporaryDirectory(prefix="swarmgame-scale-") as folder:
        asyncio.run(run(options, options.keep or Path(folder)))


if __name__ == "__main__":
    main()
