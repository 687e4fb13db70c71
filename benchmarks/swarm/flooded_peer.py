"""One honest peer that strangers flood, for `attacks.py`: a process over libp2p that has imported what a peer imports.

    python flooded_peer.py FOLDER bounded|unbounded INDEX

Its answer to `{"rounds": N}` is how long N rounds have taken, and the most memory that it and its daemon have had
meanwhile. Without bounds it takes every announcement, body, call and value, as if the bounds had never been built.
"""

from __future__ import annotations

import ctypes
import gc
import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

from channel import Parent
from contributions import make_contribution
from floods import without_bounds
from swarm.soak import command, descendants, memory

import swarmgame.runtime.peer  # noqa: F401  # the memory of a peer is mostly that of its imports
from swarmgame.game.protocol import CollectPolicy, CommunicationManager, Exchange
from swarmgame.swarm.identity import Identity
from swarmgame.swarm.network_options import NetworkOptions
from swarmgame.swarm.settings import SwarmSettings
from swarmgame.swarm.transports import libp2p

RUN = "flooded"
PEERS = 2
WORK_SECONDS = 0.5
"""Of a round, without the exchange."""
SAMPLE_SECONDS = 0.1


def key_of(folder: Path, index: int) -> Path:
    return folder / f"{index}.key"


def resident() -> float:
    """Return the MiB of this process and its daemon."""
    daemons = [pid for pid in descendants(os.getpid()) if "p2pd" in command(pid)]
    return sum(memory(pid).get("rss", 0.0) for pid in (os.getpid(), *daemons))


@contextmanager
def watched() -> Iterator[list[float]]:
    """Yield samples of this process's memory."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    samples, ended = [resident()], threading.Event()

    def sample() -> None:
        while not ended.wait(SAMPLE_SECONDS):
            samples.append(resident())

    thread = threading.Thread(target=sample, daemon=True)
    thread.start()
    try:
        yield samples
    finally:
        ended.set()
        thread.join()


def play(communication: CommunicationManager, first: int, rounds: int) -> dict[str, Any]:
    """Play rounds with the other honest peer."""
    policy = CollectPolicy(Exchange.GATHER, 1.0, 30.0, max_staleness=1)
    began, delivered = time.monotonic(), 0
    with watched() as samples:
        for round in range(first, first + rounds):
            time.sleep(WORK_SECONDS)
            communication.publish(make_contribution(communication.peer, round))
            collected = communication.collect(round, 0, policy)
            delivered += sum(each.round == round for each in collected.contributions)
    return {"seconds": time.monotonic() - began, "mib": max(samples), "delivered": delivered}


def main() -> None:
    folder, bounds, index = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
    parent = Parent()
    requests = parent.requests()
    hello = next(requests)
    anchors = frozenset(Identity.load_or_create(key_of(folder, each)).peer for each in range(PEERS))
    with ExitStack() as stack:
        if bounds == "unbounded":
            stack.enter_context(without_bounds())
            stack.enter_context(patch.object(libp2p, "bound_directory", lambda *arguments: None))
        network = NetworkOptions(key_of(folder, index), "127.0.0.1", initial_peers=tuple(hello["addresses"]))
        settings = SwarmSettings(anchors=anchors, keep_rounds=2)
        communication = libp2p.HivemindCommunication(RUN, network, settings=settings)
        try:
            communication.join(expect=sorted(anchors - {communication.peer}), min_replicas=1, timeout_seconds=60.0)
            parent.answer(addresses=list(communication.addresses))
            parent.answer(ready=True)
            round = 0
            for request in requests:
                parent.answer(**play(communication, round, request["rounds"]))
                round += request["rounds"]
        finally:
            communication.leave()


if __name__ == "__main__":
    main()
