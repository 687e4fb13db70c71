"""The rows of `attacks.py` in which strangers send too much: to two live peers, and in one contribution.

The live peers are processes over libp2p (`swarm/flooded_peer.py`), and the strangers one more (`swarm/strangers.py`).
Each flood is compared with the rounds before it, of the same processes: their memory, daemons included, and their pace.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from channel import Crew

from swarmgame.game.state import Contribution, Group, Prompt, QuestionRef, Rollout
from swarmgame.swarm.codec import Limits, Malformed, decode, encode

HERE = Path(__file__).parent
PEERS, GENERATIONS = 2, 8
ROUNDS, SMOKE_ROUNDS = 12, 1
START_SECONDS, ANSWER_SECONDS = 120.0, 240.0
FLOODS = {
    "stages": "contributions to 40 stages in each round, 5 kB sent and 4 MiB large",
    "large_values": "values of 1 MiB in the directory, 40 a second",
}
MEMORY, PACE = "memory of a peer, of that before", "pace, of that without an attack"


class Flooded(NamedTuple):
    """What a flood has changed, as shares of what was before."""

    memory: float
    pace: float


def flood_rows(*, smoke: bool) -> Iterator[dict[str, Any]]:
    """Yield the floods of live peers, with their figures and bounds. A smoke run has one flood, with the defence."""
    floods = [*FLOODS][:1] if smoke else [*FLOODS]
    defended = flooded("bounded", floods, SMOKE_ROUNDS if smoke else ROUNDS)
    without = {} if smoke else flooded("unbounded", floods, ROUNDS)
    for flood in floods:
        attack = FLOODS[flood]
        free = without.get(flood)
        for what, field, bound in ((MEMORY, "memory", {"at_most": 1.3}), (PACE, "pace", {"at_least": 0.8})):
            yield {
                "attack": attack,
                "what": what,
                "without": None if free is None else getattr(free, field),
                "defended": getattr(defended[flood], field),
                **bound,
            }


def flooded(bounds: str, floods: Sequence[str], rounds: int) -> dict[str, Flooded]:
    """Flood two peers in each way, and return what that has changed, of the peer that it has changed most."""
    support = str(HERE.parent / "worker" / "tests" / "support")
    paths = os.pathsep.join([str(HERE), support, *filter(None, [os.environ.get("PYTHONPATH")])])
    found = {}
    with tempfile.TemporaryDirectory(prefix="floods-") as place:
        folder = Path(place)
        with Crew(folder / "logs", {"PYTHONPATH": paths}) as crew:
            line = [sys.executable, str(HERE / "swarm" / "flooded_peer.py"), place, bounds]
            addresses = _assembled(crew, line)
            for flood in floods:
                before = _played(crew, rounds)
                with strangers(flood, addresses):
                    during = _played(crew, rounds)
                changed = [
                    (b["mib"] / a["mib"], a["seconds"] / b["seconds"]) for a, b in zip(before, during, strict=True)
                ]
                found[flood] = Flooded(max(memory for memory, _ in changed), min(pace for _, pace in changed))
    return found


def _assembled(crew: Crew, line: list[str]) -> list[str]:
    addresses: list[str] = []
    for index in range(PEERS):
        peer = crew.start([*line, str(index)])
        peer.send({"addresses": addresses[:1], "peers": PEERS})
        addresses += peer.receive(START_SECONDS)["addresses"][:1]
    for peer in crew.peers:
        peer.receive(START_SECONDS)
    return addresses


def _played(crew: Crew, rounds: int) -> list[dict[str, Any]]:
    answers = crew.request({"rounds": rounds}, ANSWER_SECONDS)
    if any(answer is None or answer["delivered"] < rounds for answer in answers):
        raise SystemExit(f"the two honest peers did not deliver {rounds} rounds to each other: {answers}")
    return [answer for answer in answers if answer is not None]


@contextmanager
def strangers(flood: str, addresses: list[str]) -> Iterator[None]:
    """Let strangers flood these addresses meanwhile."""
    line = [sys.executable, str(HERE / "swarm" / "strangers.py"), "flooded", "600", *addresses, "--only", flood]
    process = subprocess.Popen(line, stdout=subprocess.PIPE, start_new_session=True, text=True)
    try:
        assert process.stdout is not None
        process.stdout.readline()  # they are connected
        yield
    finally:
        os.killpg(process.pid, signal.SIGKILL)  # its daemon too
        process.wait(30)


def bomb_row() -> dict[str, Any]:
    """Return the row of one contribution of thousands of rollouts."""
    references = [QuestionRef("sums", "", 0, index) for index in range(4)]
    groups = tuple(Group(Prompt(each.id), (Rollout("1", (1,), (0.0,)),) * 2000) for each in references)
    bomb = Contribution("stranger", 0, 0, groups, {each.id: each for each in references}, "bytes", 0)
    shards = [shard.data for shard in encode(bomb, "bomb")]

    def decoded(limits: Limits) -> float:
        try:
            return float(sum(len(group.rollouts) for group in decode(shards, limits).groups))
        except Malformed:
            return 0.0

    return {
        "attack": f"8,000 rollouts in a contribution of {sum(map(len, shards))} bytes",
        "what": "rollouts that are decoded",
        "without": decoded(Limits()),
        "defended": decoded(Limits(rollouts_per_group=GENERATIONS)),
        "at_most": 0,
    }
