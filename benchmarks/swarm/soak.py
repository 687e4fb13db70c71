"""The soak's probe: rewards that also record, every few rounds, the resources of their process and its children."""

from __future__ import annotations

import ctypes
import gc
import json
import os
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from swarmgame import GameState, Rewards
from swarmgame.rewards.reasoning_gym import ReasoningGymRewards, ReasoningGymRewardsConfig

MIB = 1 << 20


class ProbedConfig(ReasoningGymRewardsConfig):
    """The rewards of reasoning-gym, and the settings of the samples."""

    every: Annotated[int, Field(ge=1)] = 10
    """Rounds between samples."""
    folder: Path
    """Folder in which each peer writes `<peer>.jsonl`."""
    types: bool = False
    """Also count objects by type, to find what grows; slow."""


class ProbedRewards(ReasoningGymRewards):
    """reasoning-gym's rewards; samples are taken at the first call of a round."""

    Config = ProbedConfig
    config: ProbedConfig

    def __init__(self, config: ProbedConfig, context: Any) -> None:
        super().__init__(config, context)
        self._last = -1

    def rewards(self, state: GameState) -> Rewards:
        number = state.round.number
        if number != self._last and number % self.config.every == 0 and not state.round.evaluation:
            self._last = number
            gc.collect()
            # Returns free memory to the kernel: the allocator's variation of 5 MiB would hide a growth of 1.
            ctypes.CDLL(None).malloc_trim(0)
            with (self.config.folder / f"{state.peer}.jsonl").open("a") as file:
                file.write(json.dumps({"round": number, "time": time.time(), **holdings(), **self._types()}) + "\n")
        return super().rewards(state)

    def _types(self) -> dict[str, Any]:
        if not self.config.types:
            return {}
        return {
            "types": dict(
                Counter(f"{type(o).__module__}.{type(o).__qualname__}" for o in gc.get_objects()).most_common(80)
            )
        }


def holdings() -> dict[str, float]:
    """Return what this process and its descendants hold: memory in MiB, descriptors, threads, tracked objects."""
    found = {f"peer_{name}": value for name, value in memory(os.getpid()).items()}
    found["descriptors"] = len(os.listdir("/proc/self/fd"))
    found["threads"] = len(os.listdir("/proc/self/task"))
    found["python_threads"] = threading.active_count()
    found["objects"] = len(gc.get_objects())
    children = descendants(os.getpid())
    found["processes"] = len(children)
    for pid in children:
        kind = "daemon" if "p2pd" in command(pid) else "sandbox"
        for name, value in memory(pid).items():
            found[f"{kind}_{name}"] = found.get(f"{kind}_{name}", 0.0) + value
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        found["cuda_allocated"] = torch.cuda.memory_allocated() / MIB
        found["cuda_reserved"] = torch.cuda.memory_reserved() / MIB
    return found


def memory(pid: int) -> dict[str, float]:
    """Return resident and unique MiB of a process; empty for one that has ended."""
    sizes = {"Rss": 0.0, "Private_Clean": 0.0, "Private_Dirty": 0.0}
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return {}
    for line in lines:
        name, _, rest = line.partition(":")
        if name in sizes:
            sizes[name] = int(rest.split()[0]) / 1024
    return {"rss": sizes["Rss"], "uss": sizes["Private_Clean"] + sizes["Private_Dirty"]}


def descendants(pid: int) -> list[int]:
    """Return all descendants of a process."""
    found: list[int] = []
    waiting = [pid]
    while waiting:
        parent = waiting.pop()
        for task in Path(f"/proc/{parent}/task").glob("*/children"):
            try:
                below = [int(child) for child in task.read_text().split()]
            except OSError:
                continue
            found += below
            waiting += below
    return found


def command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except OSError:
        return ""
