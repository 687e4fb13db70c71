"""The files of an invented run: four peers, a rise, a pause, an unknown peer, stages, roles and evaluations."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from swarmgame.observability.run_directory import RunDirectory
from swarmgame.report import write_report
from swarmgame.report.data import Summary

MakeRun = Callable[..., RunDirectory]


def line_of(
    peer: int,
    number: int,
    peers: int,
    environments: int,
    rounds: int,
    random_numbers: random.Random,
    *,
    stages: int = 1,
    roles: bool = False,
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
    reward = sum(by_environment.values()) / environments if environments else None
    return {
        "round": number,
        "index": peer,
        "time": 1_700_000_000.0 + number * 1.3,
        "peer": names[peer],
        "reward": reward,
        "stage_rewards": [] if reward is None else [reward * (1 - 0.2 * stage) for stage in range(stages)],
        "role": ("proposer" if peer == 0 else "solver") if roles else "",
        "rollouts": 64,
        "truncated_share": 0.1,
        "zero_advantage_share": 0.2 + 0.5 * progress,
        "environments": by_environment,
        "metrics": {
            "entropy": 2.2 * (1 - 0.7 * progress) + random_numbers.gauss(0, 0.04),
            "kl": 0.02 * number / rounds,
            "clip_low": 0.002 + random_numbers.random() * 0.004,
            "clip_high": 0.004 + random_numbers.random() * 0.004,
            "loss": -0.1,
            "grad_norm": 0.5 + random_numbers.random() * 0.1,
            "learning_rate": 0.001,
            "value_loss": 0.4 - 0.3 * progress,
            "constant": 3.0,
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
        "evaluation": evaluated(peer, (number + 1) / rounds, environments, stages)
        if (number + 1) % 10 == 0 or number + 1 == rounds
        else None,
        "first_evaluation": evaluated(peer, 0.0, environments, stages) if number == 0 else None,
    }


def evaluated(peer: int, progress: float, environments: int, stages: int) -> dict[str, object] | None:
    """Return an evaluation of 40 questions, harder from one to the next, of which a share is solved."""
    if not environments:
        return None
    solved = {f"{question:016x}": float(question < 8 + 24 * progress + peer) for question in range(40)}
    mean = sum(solved.values()) / 40
    error = math.sqrt(mean * (1 - mean) / 39)
    average = {f"environment_{e}": mean * (1 - 0.1 * (e % 6)) for e in range(environments)} | {"all": mean}
    return {
        "average": average,
        "errors": dict.fromkeys(average, error),
        "passed": average,
        "samples": 1,
        "stages": [mean * (1 - 0.2 * stage) for stage in range(stages)],
        "pass_at": {"1": mean},
        "scores": solved,
        "sampled": {
            "average": {"all": mean * 0.9},
            "errors": {"all": error},
            "passed": {"all": min(1.0, mean + 0.2)},
            "samples": 4,
            "stages": [],
            "pass_at": {"1": mean * 0.9, "2": min(1.0, mean + 0.1), "4": min(1.0, mean + 0.2)},
            "scores": {},
        },
    }


@pytest.fixture
def make_run(tmp_path: Path) -> MakeRun:
    """Writes a run and gives its folder."""
    return maker(tmp_path)


@pytest.fixture(scope="session")
def reported(tmp_path_factory: pytest.TempPathFactory) -> tuple[RunDirectory, Summary]:
    """A run of 120 rounds and its report, to be read only: drawing takes seconds."""
    directory = maker(tmp_path_factory.mktemp("reported"))()
    return directory, write_report(directory)


def maker(folder: Path) -> MakeRun:
    """Return a function that writes a run under a folder and returns the run's folder."""

    def make(
        *,
        peers: int = 4,
        rounds: int = 120,
        environments: int = 3,
        name: str = "quickstart",
        stages: int = 1,
        roles: bool = False,
    ) -> RunDirectory:
        directory = RunDirectory.of(folder, name)
        random_numbers = random.Random(7)
        for peer in range(peers):
            files = directory.peer(peer)
            files.root.mkdir(parents=True)
            lines = [
                json.dumps(
                    line_of(peer, number, peers, environments, rounds, random_numbers, stages=stages, roles=roles)
                )
                for number in range(rounds)
            ]
            files.metrics.write_text("\n".join(lines) + "\n")
        directory.manifest.write_text(
            "apiVersion: swarmgame.dev/v1alpha1\nkind: SwarmGame\nmetadata: {name: '<b>quickstart</b>'}\n"
        )
        return directory

    return make
