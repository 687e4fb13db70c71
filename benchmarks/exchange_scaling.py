"""The cost of a round's exchange per peer as the swarm grows, in pull mode, with a fixed number of pulled groups.

Each peer has its own p2p daemon, key and loop; several share a Python process, so that 64 fit on one machine. Rounds
begin at a fixed pace, as when peers also generate and train, so that heartbeats have their usual share. Bytes and
messages are those of the p2p layer, the DHT's included; CPU seconds are those of the Python processes and their
daemons, user and system, divided by peers and rounds. Claim: from 4 to 64 peers each of the three grows by at most 1.5
times.

    python benchmarks/exchange_scaling.py [--sizes 4,8,16,32,64] [--rounds 6] [--pace 10]
"""

from __future__ import annotations

import argparse
import json
import math
import os
import tempfile
import threading
import time
from multiprocessing import get_context
from pathlib import Path
from random import Random
from statistics import mean, median
from typing import Any

from harness import claim, machine, publish

MOST_GROWTH = 1.5
GROUPS, COMPLETIONS, TOKENS = 8, 8, 128
PULLED, MOST_PER_PEER = 6, 2
PEERS_A_PROCESS = 8
FIRST_PORT = 20_000  # below the ports that outgoing connections take


def random_contribution(peer: str, round: int) -> Any:
    """Return a contribution of 8 questions, 8 completions each, 128 tokens."""
    from swarmgame.game.state import Contribution, Group, Message, Prompt, QuestionRef, Rollout

    random = Random(f"{peer}/{round}")
    references = [QuestionRef("sums", "c0ffee", random.getrandbits(60), index) for index in range(GROUPS)]

    def rollout() -> Rollout:
        ids = tuple(random.randrange(256) for _ in range(TOKENS))
        return Rollout("".join(map(chr, ids)), ids, tuple(-random.random() for _ in ids))

    groups = tuple(
        Group(
            Prompt(r.id, (Message("user", f"what is {r.seed} + {r.index}?"),), tuple(range(24))),
            tuple(rollout() for _ in range(COMPLETIONS)),
        )
        for r in references
    )
    return Contribution(peer, round, 0, groups, {reference.id: reference for reference in references}, "bytes", round)


def cpu_seconds() -> float:
    """Return user and system time of this process and its daemons."""
    import psutil

    me = psutil.Process()
    return float(
        sum(sum(process.cpu_times()[:2]) for process in (me, *(c for c in me.children() if c.name() == "p2pd")))
    )


def some_peers(
    numbers: list[int], size: int, folder: str, rounds: int, pace: float, barrier: Any, results: Any
) -> None:
    """Run some peers of a swarm in one process."""
    from swarmgame.game.protocol import Claim, CollectPolicy, Exchange
    from swarmgame.swarm.identity import Identity, dial_address
    from swarmgame.swarm.network_options import NetworkOptions
    from swarmgame.swarm.transports.libp2p import HivemindCommunication

    known = [
        dial_address(Identity.load(Path(folder, f"{n}.key")).peer, FIRST_PORT + size + n) for n in range(min(size, 4))
    ]
    peers = []
    for number in numbers:
        network = NetworkOptions(
            Path(folder, f"{number}.key"), "127.0.0.1", FIRST_PORT + size + number, initial_peers=tuple(known)
        )
        peer = HivemindCommunication("scaling", network)
        peer.join(min_replicas=1 if number == 0 else 2, timeout_seconds=60)
        peers.append(peer)
    while any(len(peer.membership()) < size for peer in peers):
        time.sleep(0.5)
    policy = CollectPolicy(
        Exchange.PULL, quorum=1.0, deadline_seconds=30.0, external_groups=PULLED, max_per_peer=MOST_PER_PEER
    )
    claims = [Claim(0.5, position % 2 == 0) for position in range(GROUPS)]
    seconds: list[float] = []
    pulled: list[int] = []
    faults: dict[str, int] = {}

    def play(peer: HivemindCommunication, round: int) -> None:
        contribution = random_contribution(peer.peer, round)
        began = time.perf_counter()
        peer.publish(contribution, claims)
        collected = peer.collect(round, 0, policy)
        seconds.append(time.perf_counter() - began)
        pulled.append(sum(len(each.groups) for each in collected.contributions))
        for reason, count in collected.outcomes.items():
            if reason not in ("accepted", "late", "duplicate"):
                faults[reason] = faults.get(reason, 0) + count

    def traffic() -> list[int]:
        return [sum(getattr(peer.traffic, name) for peer in peers) for name in ("bytes_sent", "messages_sent")]

    before: tuple[float, list[int]] = (0.0, [0, 0])
    for round in range(rounds + 1):
        barrier.wait()
        began = time.monotonic()
        if round == 1:
            # The first round opens connections.
            before, _ = (cpu_seconds(), traffic()), (seconds.clear(), pulled.clear(), faults.clear())
        threads = [threading.Thread(target=play, args=(peer, round)) for peer in peers]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        time.sleep(max(0.0, pace - (time.monotonic() - began)))
    spent = cpu_seconds() - before[0]
    results.put((spent, [now - was for now, was in zip(traffic(), before[1], strict=True)], seconds, pulled, faults))
    barrier.wait()
    for peer in peers:
        peer.leave()


def measure(size: int, rounds: int, pace: float) -> dict[str, Any]:
    """Measure one swarm of a size."""
    from swarmgame.swarm.identity import Identity

    os.environ["GOMAXPROCS"] = "1"  # as a peer with one thread sets it for its daemon
    context = get_context("spawn")
    with tempfile.TemporaryDirectory() as folder:
        for number in range(size):
            Identity.load_or_create(Path(folder, f"{number}.key"))
        processes = math.ceil(size / PEERS_A_PROCESS)
        barrier, results = context.Barrier(processes), context.Queue()
        shares = [list(range(first, size, processes)) for first in range(processes)]
        workers = [
            context.Process(target=some_peers, args=(share, size, folder, rounds, pace, barrier, results))
            for share in shares
        ]
        for worker in workers:
            worker.start()
        try:
            parts = [results.get(timeout=120 + 10 * size + 4 * rounds * pace) for _ in workers]
        finally:
            for worker in workers:
                worker.join(30)
                worker.kill()
    each = size * rounds
    faults: dict[str, int] = {}
    for part in parts:
        for reason, count in part[4].items():
            faults[reason] = faults.get(reason, 0) + count
    return {
        "peers": size,
        "bytes": round(sum(part[1][0] for part in parts) / each),
        "messages": round(sum(part[1][1] for part in parts) / each, 2),
        "cpu_seconds": round(sum(part[0] for part in parts) / each, 4),
        "groups_pulled": round(mean(count for part in parts for count in part[3]), 2),
        "exchange_ms": round(1e3 * median(second for part in parts for second in part[2])),
        "faults": faults,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--sizes", default="4,8,16,32,64")
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--pace", type=float, default=10.0, help="seconds from one round to the next")
    parser.add_argument("--no-save", action="store_true")
    options = parser.parse_args()
    rows = []
    began = machine()
    for size in (int(text) for text in options.sizes.split(",")):
        rows.append(measure(size, options.rounds, options.pace))
        print(json.dumps(rows[-1]), flush=True)
    growth = {name: round(rows[-1][name] / rows[0][name], 2) for name in ("bytes", "messages", "cpu_seconds")}
    body = {
        "claims": [
            claim(
                f"{name.replace('_', ' ')} per peer, {rows[0]['peers']} → {rows[-1]['peers']} peers",
                value,
                at_most=MOST_GROWTH,
            )
            for name, value in growth.items()
        ],
        "mode": "pull",
        "groups": GROUPS,
        "completions": COMPLETIONS,
        "tokens": TOKENS,
        "pulled": PULLED,
        "max_per_peer": MOST_PER_PEER,
        "rounds": options.rounds,
        "pace_seconds": options.pace,
        "rows": rows,
        "growth": growth,
    }
    publish("exchange_scaling", body, began=began, smoke=options.no_save)


if __name__ == "__main__":
    main()
