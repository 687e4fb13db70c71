"""The exchange of a stage, in which every peer publishes and receives: GenRL's `all_gather_object` against SwarmGame.

2, 4 and 8 peers, each a process, on one machine; 1 KiB to 10 MiB per peer. A call is one exchange of one peer; its
seconds are those of the slowest peer. A call that has not returned within the bound is hung, and its processes are
killed; one that returned fewer bodies than peers is short. `--thousand` repeats 8 peers x 256 KiB a thousand times
with SwarmGame only and adds it to the last result. Claims: 8 x 1 KiB at least 25 times as fast as GenRL; 8 x 256 KiB
in at most 250 ms, none of a thousand hung; 10 MiB works.
"""

from __future__ import annotations

import argparse
import math
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from channel import Crew, NoAnswer
from genrl.environment import environment
from harness import claim, machine, publish, result, summary

HERE = Path(__file__).parent
KIB = 1024
SIZES = {
    "1 KiB": KIB,
    "16 KiB": 16 * KIB,
    "32 KiB": 32 * KIB,
    "256 KiB": 256 * KIB,
    "1 MiB": KIB * KIB,
    "10 MiB": 10 * KIB * KIB,
}
COUNTS = (2, 4, 8)
START_SECONDS = 180.0
CALL_SECONDS = 10.0
"""A longer call is hung: the bound is seven times GenRL's slowest complete call."""
LARGE_CALL_SECONDS = 60.0
"""The bound above 1 MiB, for both arms."""


class Swarm:
    """The peers of one arm, started when first needed and again after a hang."""

    def __init__(self, arm: str, peers: int, folder: Path) -> None:
        self.arm, self.size, self._folder = arm, peers, folder
        self._crew: Crew | None = None
        self._starts = 0
        self._made = 0

    def call(self, size: int, seconds: float) -> list[dict[str, Any] | None]:
        """Run one exchange of `size` bytes per peer; None for each peer that hung. After a hang, all are killed."""
        crew = self._crew or self._start()
        if size != self._made:
            if None in crew.request({"make": size}, START_SECONDS):
                raise NoAnswer(f"{self.arm}: no contribution of {size} bytes within {START_SECONDS:.0f} s")
            self._made = size
        answers = crew.request({"exchange": size}, seconds)
        if None in answers:
            self.stop()
        return answers

    def stop(self) -> None:
        if self._crew is not None:
            self._crew.__exit__()
            self._crew, self._made = None, 0

    def _start(self) -> Crew:
        python = str(environment()) if self.arm == "genrl" else sys.executable
        script = str(HERE / ("genrl" if self.arm == "genrl" else "swarm") / "exchange_peer.py")
        variables = {
            "PYTHONPATH": str(HERE),
            "HIVEMIND_WORLD_SIZE": str(self.size),
            "OMP_NUM_THREADS": "1",
            "HF_HUB_OFFLINE": "1",
        }
        self._starts += 1
        crew = self._crew = Crew(self._folder / f"{self.arm}-{self.size}-{self._starts}", variables)
        crew.assemble([python, script], self.size, START_SECONDS)
        return crew


class CallCounts:
    """The outcomes of the calls of one arm at one size."""

    def __init__(self) -> None:
        self.complete = self.short = self.hung = 0
        self.slowest: list[float] = []

    def add(self, answers: Sequence[dict[str, Any] | None], *, peers: int) -> None:
        returned = [answer for answer in answers if answer is not None]
        complete = sum(answer["others"] == peers - 1 for answer in returned)
        self.complete += complete
        self.short += len(returned) - complete
        self.hung += len(answers) - len(returned)
        if complete == peers:
            self.slowest.append(max(answer["seconds"] for answer in returned))

    def figures(self) -> dict[str, Any]:
        """Return calls by outcome, and the slowest peer's seconds over the calls that were complete at every peer."""
        return {
            "calls": self.complete + self.short + self.hung,
            "whole": self.complete,
            "short": self.short,
            "hung": self.hung,
            "seconds": summary(self.slowest),
        }


def compare(
    counts: Sequence[int], sizes: Sequence[str], calls: int, folder: Path, log: Callable[[str], None]
) -> dict[str, Any]:
    """Measure both arms at every number of peers and size, one call of each in turn: peers → size → arm → figures."""
    table: dict[str, Any] = {}
    for peers in counts:
        swarms = {arm: Swarm(arm, peers, folder) for arm in ("genrl", "swarmgame")}
        table[str(peers)] = {"machine": machine()}
        try:
            for size in sizes:
                figures = table[str(peers)][size] = _alternate(swarms, SIZES[size], calls)
                log(f"{peers} peers, {size}: " + ", ".join(f"{arm} {_brief(found)}" for arm, found in figures.items()))
        finally:
            for swarm in swarms.values():
                swarm.stop()
    return table


def _alternate(swarms: dict[str, Swarm], size: int, calls: int) -> dict[str, Any]:
    counts = {arm: CallCounts() for arm in swarms}
    bound = CALL_SECONDS if size <= KIB * KIB else LARGE_CALL_SECONDS
    for _ in range(calls):
        for arm, swarm in swarms.items():
            # One hang is enough: the next call would wait as long again.
            if not counts[arm].hung:
                counts[arm].add(swarm.call(size, bound), peers=swarm.size)
    return {arm: count.figures() for arm, count in counts.items()}


def thousand(calls: int, folder: Path, *, peers: int = 8, size: str = "256 KiB") -> dict[str, Any]:
    """Measure only SwarmGame, again and again in the same processes."""
    swarm, counts = Swarm("swarmgame", peers, folder), CallCounts()
    try:
        for _ in range(calls):
            counts.add(swarm.call(SIZES[size], CALL_SECONDS), peers=peers)
    finally:
        swarm.stop()
    return {"peers": peers, "size": size, "exchanges": calls, **counts.figures()}


def claims(table: dict[str, Any], many: dict[str, Any] | None) -> list[dict[str, Any]]:
    """Return the claims of the measured figures."""
    eight = table.get("8", {})
    made = []
    if "1 KiB" in eight:
        ratio = eight["1 KiB"]["genrl"]["seconds"]["median"] / eight["1 KiB"]["swarmgame"]["seconds"]["median"]
        made.append(claim("8 peers x 1 KiB: GenRL's seconds / ours", ratio, at_least=25))
    if "256 KiB" in eight:
        made.append(
            claim(
                "8 peers x 256 KiB: our median seconds",
                eight["256 KiB"]["swarmgame"]["seconds"]["median"],
                at_most=0.25,
            )
        )
    if "10 MiB" in eight:
        ours = eight["10 MiB"]["swarmgame"]
        made.append(
            claim("8 peers x 10 MiB: share of complete calls of SwarmGame", ours["whole"] / ours["calls"], at_least=1.0)
        )
    if many is not None:
        made.append(
            claim(
                f"8 peers x 256 KiB, {many['exchanges']} exchanges: incomplete calls of SwarmGame",
                many["short"] + many["hung"],
                at_most=0,
            )
        )
    return made


def _brief(figures: dict[str, Any]) -> str:
    median = figures["seconds"]["median"]
    seconds = "-" if median is None or math.isnan(median) else f"{median * 1000:.0f} ms"
    return f"{seconds} ({figures['whole']}/{figures['calls']} complete, {figures['hung']} hung)"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--smoke", action="store_true", help="ours alone, 2 peers, 1 KiB, in seconds; nothing is written"
    )
    parser.add_argument(
        "--thousand", action="store_true", help="only the thousand calls of ours; the rest of the last result is kept"
    )
    parser.add_argument("--peers", type=int, choices=COUNTS, help="only so many; the last result of the others is kept")
    parser.add_argument("--calls", type=int, default=15, help="calls of each arm at each size")
    options = parser.parse_args()
    began = machine()
    with tempfile.TemporaryDirectory(prefix="exchange-") as name:
        folder = Path(name)
        if options.smoke:
            many = thousand(1, folder, peers=2, size="1 KiB")
            publish("exchange_vs_genrl", {"claims": [], "exchanges": {}, "thousand": many}, began=began, smoke=True)
            sys.exit(0 if many["whole"] == many["calls"] else 1)
        last = result("exchange_vs_genrl") or {}
        repeated: dict[str, Any] | None
        if options.thousand:
            table, repeated = last.get("exchanges", {}), {**thousand(1000, folder), "machine": began}
        else:
            counts = [options.peers] if options.peers else COUNTS
            measured = compare(
                counts, list(SIZES), options.calls, folder, lambda line: print(line, file=sys.stderr, flush=True)
            )
            table = {**last.get("exchanges", {}), **measured}
            repeated = last.get("thousand")
    publish(
        "exchange_vs_genrl", {"claims": claims(table, repeated), "exchanges": table, "thousand": repeated}, began=began
    )


if __name__ == "__main__":
    main()
