"""SwarmGame's arm of a round: GameManager, GRPOTrainer and HivemindCommunication as in a game.

Usage: round_peer.py WORK INDEX. Between rounds an observer answers with the report of the last round and waits for the
request of the next one; the loop is unchanged.
"""

from __future__ import annotations

import gc
import math
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from channel import Parent
from connection import NoCommunication, connect
from game import WorkConfig, WorkData, WorkRewards
from work import LEARNING_RATE, Work

from swarmgame import ComponentContext, GameState, Rewards, Round
from swarmgame.game.manager import GameManager, Progression
from swarmgame.game.protocol import Collected, CommunicationManager, Exchange
from swarmgame.game.report import Observer, RoundReport
from swarmgame.trainer.grpo.config import GRPOConfig
from swarmgame.trainer.grpo.trainer import GRPOTrainer


class OnRequest(Observer):
    """Holds the loop before each round until it is requested, and answers after it."""

    def __init__(self, parent: Parent, requests: Iterator[dict[str, Any]]) -> None:
        self.parent, self.requests = parent, requests
        self.ended = False
        self.received = 0
        self.version = 0
        self.began = self.worked = 0.0

    def game_started(self, first_round: int, max_rounds: int) -> None:
        self._wait()

    def stage_closed(self, round: Round, stage: int, collected: Collected) -> None:
        self.received += len(collected.contributions)

    def round_finished(self, report: RoundReport, state: GameState, rewards: Rewards) -> None:
        seconds = {part: report.seconds.get(part, 0.0) for part in ("generate", "exchange", "rewards", "train")}
        seconds["round"] = time.perf_counter() - self.began
        seconds["processor"] = time.process_time() - self.worked
        prompt_tokens = sum(len(group.prompt.token_ids) for _, group in state.own_groups())
        updates = report.policy_version - self.version
        finite = {name: value for name, value in report.metrics.items() if math.isfinite(value)}
        self.parent.answer(
            seconds=seconds,
            received=self.received,
            updates=updates,
            tokens=report.tokens,
            prompt_tokens=prompt_tokens,
            metrics=finite,
        )
        self.version = report.policy_version
        self._wait()

    def _wait(self) -> None:
        self.ended = next(self.requests, None) is None
        self.received = 0
        self.began, self.worked = time.perf_counter(), time.process_time()


def trainer(work: Work, context: ComponentContext) -> GRPOTrainer:
    """Return the trainer with GenRL's loss (token-level, no KL), clip range, learning rate and updates per stage."""
    chosen = {
        "generations": work.game.generations,
        "maxNewTokens": work.game.tokens,
        "minNewTokens": work.game.tokens,
        "learningRate": LEARNING_RATE,
        "update": "per-stage",
        "loss": "dapo",
        "epsilon": 0.2,
        "epsilonHigh": 0.28,
        "beta": 0.0,
    }
    return GRPOTrainer(GRPOConfig.model_validate(chosen), context)


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    parent = Parent()
    requests = parent.requests()
    work = Work.read(folder)
    with tempfile.TemporaryDirectory(prefix="round-peer-") as own:
        swarm = work.game.peers > 1
        communication: CommunicationManager
        if swarm:
            communication = connect(Path(own), parent, requests)
        else:
            communication = NoCommunication()
            next(requests)
            parent.answer(addresses=[])
        context = ComponentContext(
            stages=work.game.stages, peer=communication.peer, model_uri=work.model.as_uri(), cache=Path(own)
        )
        policy = trainer(work, context)
        parent.answer(ready=True)
        observer = OnRequest(parent, requests)
        progression = Progression(
            max_rounds=1_000_000,
            stages=work.game.stages,
            exchange=Exchange.GATHER,
            quorum=1.0,
            single_peer=not swarm,
        )
        manager = GameManager(
            progression,
            data=WorkData(WorkConfig(folder=folder), context),
            rewards=WorkRewards(None, context),
            trainer=policy,
            communication=communication,
            observers=[observer],
            stopped=lambda: observer.ended,
        )
        gc.collect()  # as a peer does before it plays
        gc.freeze()
        try:
            manager.run(0)
        finally:
            communication.leave()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
