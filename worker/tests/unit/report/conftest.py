"""The files of an invented run: four peers, a rise, a pause, an unknown peer and an evaluation."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from swarmgame.observability.run_directory import RunDirectory

MakeRun = Callable[..., RunDirectory]


def line_of(
    peer: int, number: int, peers: int, environments: int, rounds: int, random_numbers: random.Random
) -> dict[str, object]:
    progress = 1 / (1 + math.exp(-8 * (number / rounds - 0.4)))
    by_environment = {
        f"environment_{e}": min(1.0, max(0.0, progress * (1.0 - 0.15 * (e % 6)) + random_numbers.gauss(0, 0.07)))
        for e in range(environments)
    }
    names = [f"16Uiu2HAmPeer{i}" for i in range(peers)]
    slow = number % 17 == 0
    generate, train = 0.4 + random_numbers.random() * 0.05, 0.6 + random_numbers.random() * 0.05
    exchange, rewards, checkpoint = (
        (0.9 if slow else 0.06) + random_numbers.random() * 0.02,
        0.08,
        0.05 if number % 10 == 0 else 0.0,
    )
    evaluation = None
    if number % 10 == 0:
        average = {**{name: value * 0.9 for name, value in by_environment.items()}, "all": progress * 0.75}
        evaluation = {
            "average": average,
            "passed": {name: min(1.0, value + 0.15) for name, value in average.items()},
            "samples": 4,
        }
    return {
        "round": number,
        "index": peer,
        "time": 1_700_000_000.0 + number * 1.3,
        "peer": names[peer],
        "reward": sum(by_environment.values()) / environments if environments else None,
        "stage_rewards": [],
        "environments": by_environment,
        "metrics": {
            "entropy": 2.2 * (1 - 0.7 * progress) + random_numbers.gauss(0, 0.04),
            "kl": 0.02 * number / rounds,
            "clip_low": 0.002 + random_numbers.random() * 0.004,
            "clip_high": 0.004 + random_numbers.random() * 0.004,
            "loss": -0.1,
        },
        "external": {
            names[(peer + 1) % peers]: 4,
            names[(peer + 2) % peers]: random_numbers.randint(0, 4),
            "16Uiu2HAmUnknown": int(slow),
        }
        if peers > 1
        else {},
        "members": names,
        "missing": [names[0]] if slow and peer else [],
        "closed_by": "alone" if peers == 1 else "deadline" if slow else "quorum",
        "tokens": 64 * 16,
        "policy_version": number + 1,
        "seconds": {
            "generate": generate,
            "exchange": exchange,
            "rewards": rewards,
            "train": train,
            "checkpoint": checkpoint,
            "round": generate + exchange + rewards + train + 0.03,
        },
        "outcomes": {"accepted": peers - 1, "late": int(slow)},
        "counters": {"breaches": number // 40, "exceptions": number // 10},
        "bytes_sent": 20_000,
        "bytes_received": 60_000,
        "evaluation": evaluation,
    }


@pytest.fixture
def make_run(tmp_path: Path) -> MakeRun:
    """Writes a run and gives its folder."""

    def make(*, peers: int = 4, rounds: int = 120, environments: int = 3, name: str = "quickstart") -> RunDirectory:
        directory = RunDirectory.of(tmp_path, name)
        random_numbers = random.Random(7)
        for peer in range(peers):
            files = directory.peer(peer)
            files.root.mkdir(parents=True)
            lines = [
                json.dumps(line_of(peer, number, peers, environments, rounds, random_numbers))
                for number in range(rounds)
            ]
            files.metrics.write_text("\n".join(lines) + "\n")
        directory.manifest.write_text(
            "apiVersion: swarmgame.dev/v1alpha1\nkind: SwarmGame\nmetadata: {name: '<b>quickstart</b>'}\n"
        )
        return directory

    return make
