"""What untrusted peers change in the learning of four honest ones, with the bounds on their influence and without.

Four untrusted peers with free keys join four honest ones. Every honest peer plays the real loop: verification, rewards,
external sampling, GRPO. For each seed the arms are played in turn: no attack (the control), and each attack with all
bounds and without them. The score is the mean reward on held-out questions at the end, over the honest peers; the
control's interval is the 95 % interval of its mean over seeds. With `--parts FOLDER` every finished arm is kept, and a
run that was stopped goes on there; several processes may share a folder, each with seeds of its own (`--only`), and the
last one without `--only` writes the result.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import os
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest.mock import patch

import harness
import torch
from strangers.attacks import ATTACKS, PAYLOAD, Target
from strangers.game import Contained, Overlooking, Products, ProductsConfig
from strangers.lockstep import LockstepSwarm

from swarmgame.game.author_records import AuthorRecords
from swarmgame.game.components import ComponentContext
from swarmgame.game.copies import SeenRollouts
from swarmgame.game.drift_watch import DriftWatch
from swarmgame.game.external_sampling import ExternalSamplingPolicy
from swarmgame.game.manager import GameManager, Progression
from swarmgame.game.protocol import Exchange
from swarmgame.game.report import Observer, RoundReport
from swarmgame.game.state import GameState, Rewards
from swarmgame.trainer.grpo import denominators
from swarmgame.trainer.grpo.config import GRPOConfig
from swarmgame.trainer.grpo.remote_bounds import RemoteBounds
from swarmgame.trainer.grpo.trainer import GRPOTrainer

HONEST = ("honest-a", "honest-b", "honest-c", "honest-d")
GENERATIONS, MAX_NEW_TOKENS, LEARNING_RATE = 8, 6, 1e-3
EXTERNAL, MAX_PER_PEER, MAX_INFLUENCE = 8, 4, 0.5
EVALUATE_EVERY, HELD_OUT, LAST = 6, 64, 8
MODEL = "builtin://tiny?layers=1&accuracy=0.4"
T_95 = {2: 12.71, 3: 4.30, 4: 3.18, 5: 2.78, 6: 2.57, 7: 2.45, 8: 2.36, 9: 2.31, 10: 2.26}
"""Student's t of a two-sided 95 % interval, by number of seeds."""
PAYLOAD_SHARE = 0.02
HOLE = "hole"
SMOKE_ROUNDS = 12


@dataclass(frozen=True)
class Arm:
    """One attack, with the bounds or without them."""

    attack: str
    defended: bool

    def __str__(self) -> str:
        return self.attack if self.attack == "none" else f"{self.attack}, {'' if self.defended else 'un'}defended"


ARMS = (
    Arm("none", defended=True),
    *(Arm(name, defended) for defended in (True, False) for name in ATTACKS if name != "none"),
)


class Watch(Observer):
    """Collects what a peer's reports say."""

    def __init__(self) -> None:
        self.rewards: list[float] = []
        self.payload: list[float] = []
        self.evaluations: list[float] = []
        self.influence: list[float] = []
        self.outcomes: dict[str, int] = {}

    def round_finished(self, report: RoundReport, state: GameState, rewards: Rewards) -> None:
        texts = [rollout.text for _, group in state.own_groups() for rollout in group.rollouts]
        self.rewards.append(report.reward)
        self.payload.append(sum(PAYLOAD in text for text in texts) / len(texts))
        self.influence.append(sum(share for peer, share in report.influence.items() if peer not in HONEST))
        for name, count in report.outcomes.items():
            self.outcomes[name] = self.outcomes.get(name, 0) + count
        if report.evaluation is not None:
            self.evaluations.append(report.evaluation.average["all"])


@contextmanager
def without_bounds() -> Iterator[None]:
    """Switch every bound off: as if each had never been built."""
    with ExitStack() as off:
        off.enter_context(patch.object(denominators, "REMOTE_CAP", math.inf))
        off.enter_context(patch.object(RemoteBounds, "floors", None))
        off.enter_context(patch.object(SeenRollouts, "is_copy", lambda self, stage, group: False))
        off.enter_context(patch.object(AuthorRecords, "record", lambda self, round, uses: frozenset()))
        off.enter_context(patch.object(DriftWatch, "add_evaluation", lambda self, evaluation: ""))
        yield


def play(arm: Arm, seed: int, rounds: int, cache: Path) -> dict[str, Any]:
    """Play one arm, and return what the honest peers learned."""
    with ExitStack() as stack:
        if not arm.defended:
            stack.enter_context(without_bounds())
        began = time.perf_counter()
        managers, watches, trainers = {}, {}, {}
        data = Products(ProductsConfig(), ComponentContext())

        def attack(honest: Mapping[str, Any]) -> Sequence[Any]:
            return ATTACKS[arm.attack](Target(data, trainers[HONEST[0]]), honest)

        swarm = LockstepSwarm(HONEST, attack, GENERATIONS if arm.defended else 0)
        for name in HONEST:
            context = ComponentContext(
                seed=seed,
                peer=name,
                model_uri=MODEL,
                cache=cache,
                demonstrations=data,
                max_influence=MAX_INFLUENCE if arm.defended else 1.0,
                influence_part=MAX_PER_PEER / EXTERNAL,
            )
            config = GRPOConfig(
                generations=GENERATIONS, max_new_tokens=MAX_NEW_TOKENS, learning_rate=LEARNING_RATE, loss_type="dapo"
            )
            trainers[name] = GRPOTrainer(config, context)
            watches[name] = Watch()
            managers[name] = GameManager(
                Progression(
                    max_rounds=rounds,
                    seed=seed,
                    exchange=Exchange.GATHER,
                    sharing=ExternalSamplingPolicy(EXTERNAL, "nonzero-advantage", MAX_PER_PEER),
                    evaluate_every=EVALUATE_EVERY,
                    evaluation_questions=HELD_OUT,
                ),
                data=data,
                rewards=(Overlooking if arm.attack == HOLE else Contained)(None, context),
                trainer=trainers[name],
                communication=swarm.peer(name),
                observers=[watches[name]],
            )
        swarm.play(managers)
        for trainer in trainers.values():
            trainer.close()
    last = {name: each.rewards[-LAST:] for name, each in watches.items()}
    outcomes: dict[str, int] = {}
    for each in watches.values():
        for outcome, count in each.outcomes.items():
            outcomes[outcome] = outcomes.get(outcome, 0) + count
    return {
        "held_out": statistics.fmean(each.evaluations[-1] for each in watches.values()),
        "own_reward": statistics.fmean(value for values in last.values() for value in values),
        "first_reward": statistics.fmean(each.rewards[0] for each in watches.values()),
        "payload": statistics.fmean(value for each in watches.values() for value in each.payload[-LAST:]),
        "influence": statistics.fmean(value for each in watches.values() for value in each.influence),
        "outcomes": dict(sorted(outcomes.items())),
        "seconds": time.perf_counter() - began,
    }


def interval(values: Sequence[float]) -> dict[str, float]:
    """Return the mean and its 95 % interval over seeds."""
    mean = statistics.fmean(values)
    if len(values) < 2:
        return {"mean": mean, "low": math.nan, "high": math.nan}
    half = T_95.get(len(values), 2.1) * statistics.stdev(values) / math.sqrt(len(values))
    return {"mean": mean, "low": mean - half, "high": mean + half}


def summary_of(runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the figures of an arm over its seeds."""
    names = ("held_out", "own_reward", "payload", "influence", "seconds")
    outcomes: dict[str, int] = {}
    for run in runs:
        for name, count in run["outcomes"].items():
            outcomes[name] = outcomes.get(name, 0) + count
    figures = {
        name: {key: round(value, 4) for key, value in interval([run[name] for run in runs]).items()} for name in names
    }
    return {
        **figures,
        "seeds": len(runs),
        "by_seed": [round(run["held_out"], 4) for run in runs],
        "outcomes": {name: count for name, count in sorted(outcomes.items()) if name != "accepted"},
    }


def claims_of(arms: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return, for each attack: not below the control's interval with the bounds, and below it without."""
    control, found = arms["none"]["held_out"], []
    for name in ATTACKS:
        if name == "none":
            continue
        figures = arms[f"{name}, defended"]
        if name != HOLE:  # another scorer, so its rewards do not compare with the control's
            score, least = figures["held_out"]["mean"], round(control["low"], 4)
            found.append(harness.claim(f"held-out reward, {name}, defended", score, at_least=least))
        if name in ("payload", HOLE):
            share = figures["payload"]["mean"]
            found.append(harness.claim(f"own answers with the payload, {name}, defended", share, at_most=PAYLOAD_SHARE))
    return found


class Parts:
    """The runs that are finished, in one file for each seed; they are of one code and length.

    Args:
        folder: None: nothing is kept.
    """

    def __init__(self, folder: Path | None, rounds: int) -> None:
        self._folder = folder
        self._made_by = {"rounds": rounds, "code": code_digest()}
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)

    def read(self, seed: int) -> dict[str, Any]:
        """Return the runs of a seed, by arm.

        Raises:
            SystemExit: they were made with other code, or in another number of rounds.
        """
        if self._folder is None or not (path := self._path(self._folder, seed)).exists():
            return {}
        found = json.loads(path.read_text())
        if found["made_by"] != self._made_by:
            raise SystemExit(f"{path} was made by {found['made_by']}, this is {self._made_by}: name another folder")
        arms: dict[str, Any] = found["arms"]
        return arms

    def write(self, seed: int, arms: Mapping[str, Any]) -> None:
        """Keep the runs of a seed; a reader sees the file as it was before, or all of it."""
        if self._folder is not None:
            path = self._path(self._folder, seed)
            written = path.with_suffix(f".{os.getpid()}")
            written.write_text(json.dumps({"made_by": self._made_by, "arms": arms}))
            written.replace(path)

    @staticmethod
    def _path(folder: Path, seed: int) -> Path:
        return folder / f"{seed}.json"


def code_digest() -> str:
    """Return a digest of the code that decides what the peers learn."""
    here = Path(__file__).parent
    package = here.parent / "worker" / "swarmgame"
    files = [Path(__file__), *(here / "strangers").glob("*.py")]
    files += [path for name in ("game", "inference", "models", "trainer") for path in (package / name).rglob("*.py")]
    digest = hashlib.sha256()
    for path in sorted(files):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--smoke", action="store_true", help="one seed, few rounds, the bounds only, no file")
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=24)
    parser.add_argument("--undefended", type=int, default=3, help="seeds of the arms without bounds")
    parser.add_argument("--minutes", type=float, default=math.inf, help="begin no arm after this; no file if some miss")
    parser.add_argument("--parts", type=Path, help="keep finished arms in this folder, and take those that are there")
    parser.add_argument("--only", type=int, nargs="*", help="only these seeds, for a process of several; no file")
    parser.add_argument("--arms", nargs="*", help="only these, for a look; no file")
    options = parser.parse_args()
    torch.set_num_threads(1)
    began, machine = time.monotonic(), harness.machine()
    chosen = [
        arm for arm in ARMS if (not options.arms or str(arm) in options.arms) and (arm.defended or not options.smoke)
    ]
    rounds = SMOKE_ROUNDS if options.smoke else options.rounds
    parts = Parts(options.parts, rounds)
    runs: dict[str, list[dict[str, Any]]] = {str(arm): [] for arm in chosen}
    missing = 0
    with TemporaryDirectory(prefix="influence-") as folder:
        for seed in range(1 if options.smoke else options.seeds):
            if options.only is not None and seed not in options.only:
                continue
            found = parts.read(seed)
            for arm in chosen:
                if not arm.defended and seed >= options.undefended:
                    continue
                if str(arm) not in found:
                    if time.monotonic() - began > 60 * options.minutes:
                        missing += 1
                        continue
                    found[str(arm)] = play(arm, seed, rounds, Path(folder))
                    parts.write(seed, found)
                runs[str(arm)].append(found[str(arm)])
    if missing:
        raise SystemExit(f"{missing} arms are not finished: run again with the same --parts, and nothing is lost")
    part_only = options.smoke or bool(options.arms) or options.only is not None
    arms = {name: summary_of(each) for name, each in runs.items() if each}
    body = {
        "claims": [] if part_only else claims_of(arms),
        "shape": {
            "honest": len(HONEST),
            "untrusted": 4,
            "rounds": rounds,
            "seeds": len(next(iter(runs.values()))),
            "external_groups": EXTERNAL,
            "max_influence": MAX_INFLUENCE,
        },
        "arms": arms,
    }
    harness.publish("influence", body, began=machine, smoke=part_only)


if __name__ == "__main__":
    main()
