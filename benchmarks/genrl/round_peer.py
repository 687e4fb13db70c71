"""GenRL's arm of a round: its game manager, state, data managers, reward manager, GRPO trainer and backends.

Runs in GenRL's environment. Usage: round_peer.py WORK INDEX. Its loop (`run_game`) is unchanged: before each round it
calls `end_of_game`, which waits here for a request, and after it a hook answers with the measurement. GenRL swallows
the exceptions of a round, so the answer has the number of optimizer steps and received bodies, by which the benchmark
checks the work.
"""

from __future__ import annotations

import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import exports  # noqa: F401 - before genrl
import torch
from channel import Parent
from genrl.communication.communication import Communication
from genrl.communication.hivemind.hivemind_backend import HivemindBackend, HivemindRendezvouz
from genrl.communication.local.null_comm import NullCommunicationBackend
from genrl.data.text_data_managers import LocalMemoryTextDataManager, SimpleTextDataManager
from genrl.examples.multistage_math.data import MSMDataManager
from genrl.game import BaseGameManager
from genrl.rewards import DefaultRewardManager, RewardFnStore, RoundRewardFnStore
from genrl.state import GameState
from genrl.trainer.grpo_trainer import GRPOLanguageTrainerModule, GRPOTrainerConfig
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast
from work import LEARNING_RATE, Work, reward


class CheapReward:
    """The reward of the benchmark in GenRL's shape: agent → batch item → node → a list of floats."""

    def __init__(self, stage: int) -> None:
        self.stage = stage

    def __call__(self, state: GameState) -> dict[Any, dict[Any, list[list[float]]]]:
        actions = state.get_stage_actions(self.stage)
        return {
            agent: {item: [[reward(text) for text in texts] for texts in nodes] for item, nodes in items.items()}
            for agent, items in actions.items()
        }


class Measured(BaseGameManager):
    """GenRL's game manager, which waits for a request before each round and answers after it."""

    def __init__(self, parent: Parent, requests: Iterator[dict[str, Any]], **parts: Any) -> None:
        super().__init__(**parts)
        self.parent, self.requests = parent, requests
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self.received = self.updates = self.tokens = self.prompt_tokens = 0
        self.trainer._process_inputs = self._counted(self.trainer._process_inputs)
        self.trainer.generate = self._timed("generate", self.trainer.generate, self._count_tokens)
        self.trainer.train = self._timed("train", self.trainer.train)
        self.rewards.update_rewards = self._timed("rewards", self.rewards.update_rewards)
        self.communication.all_gather_object = self._timed(
            "exchange", self.communication.all_gather_object, self._count_received
        )
        self.trainer.optimizer.register_step_post_hook(self._count_update)

    def end_of_game(self) -> bool:
        if next(self.requests, None) is None:
            return True
        self.seconds.clear()
        self.received = self.updates = self.tokens = self.prompt_tokens = 0
        self.began, self.worked = time.perf_counter(), time.process_time()
        return False

    def _hook_after_round_advanced(self) -> None:
        self.seconds["round"] = time.perf_counter() - self.began
        self.seconds["processor"] = time.process_time() - self.worked
        self.parent.answer(
            seconds=dict(self.seconds),
            received=self.received,
            updates=self.updates,
            tokens=self.tokens,
            prompt_tokens=self.prompt_tokens,
        )

    def _timed(
        self, part: str, call: Callable[..., Any], count: Callable[[Any], None] = lambda _: None
    ) -> Callable[..., Any]:
        def timed(*args: Any, **kwargs: Any) -> Any:
            began = time.perf_counter()
            returned = call(*args, **kwargs)
            self.seconds[part] += time.perf_counter() - began
            count(returned)
            return returned

        return timed

    def _counted(self, process: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*args: Any, for_training: bool = False, **kwargs: Any) -> Any:
            tokens = process(*args, for_training=for_training, **kwargs)
            if not for_training:
                self.prompt_tokens += int(tokens.attention_mask.sum())
            return tokens

        return counted

    def _count_tokens(self, completions: list[list[str]]) -> None:
        self.tokens += sum(len(ids) for texts in completions for ids in self.trainer.processing_class(texts).input_ids)

    def _count_received(self, gathered: dict[Any, Any]) -> None:
        self.received += len(gathered) - 1

    def _count_update(self, *_: Any) -> None:
        self.updates += 1


def data_manager(work: Work) -> LocalMemoryTextDataManager:
    """Return GenRL's data manager of the game with the questions in memory, which is quicker than its loading."""
    manager: LocalMemoryTextDataManager
    if work.game.name == "multistage":
        manager = MSMDataManager(train_dataset="gsm8k", num_train_samples=work.game.questions)
    else:
        columns = {"question": "question", "answer": "answer"}
        manager = SimpleTextDataManager(
            None, column_name_map=columns, batch_item_id_column="question", data_generator=lambda **_: []
        )
    mark = "#### " if work.game.name == "multistage" else ""
    rounds = iter(range(1_000_000))

    def questions(**_: Any) -> list[dict[str, str]]:
        return [{"question": each.question, "answer": mark + each.answer} for each in work.questions(next(rounds))]

    manager.data_generator = questions
    return manager


def trainer(work: Work, folder: Path) -> GRPOLanguageTrainerModule:
    """Return GenRL's GRPO trainer with its defaults, but the size of the work; EOS may not come early."""
    config = GRPOTrainerConfig(
        max_new_tokens=work.game.tokens, num_generations=work.game.generations, learning_rate=LEARNING_RATE
    )
    model = AutoModelForCausalLM.from_pretrained(work.model, dtype=torch.float32)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(work.model)
    module = GRPOLanguageTrainerModule(
        [model], config, processing_class=tokenizer, log_dir=str(folder), log_with="none"
    )
    module.generation_config.min_new_tokens = work.game.tokens
    return module


def main(folder: Path, index: int) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(index)
    parent = Parent()
    requests = parent.requests()
    addresses = next(requests)["addresses"]
    work = Work.read(folder)
    module, data = trainer(work, folder), data_manager(work)
    communication: Communication = NullCommunicationBackend()
    ours: list[str] = []
    if work.game.peers > 1:
        HivemindRendezvouz.init(is_master=index == 0)
        communication = HivemindBackend(initial_peers=addresses or None)
        ours = [str(address) for address in communication.dht.get_visible_maddrs()]
    rewards = RoundRewardFnStore(work.game.stages, [CheapReward(stage) for stage in range(work.game.stages)])
    manager = Measured(
        parent,
        requests,
        max_stage=work.game.stages,
        max_round=1_000_000,
        game_state=GameState(round=0, stage=0),
        reward_manager=DefaultRewardManager(RewardFnStore(1_000_000, [rewards])),
        trainer=module,
        data_manager=data,
        communication=communication,
    )
    parent.answer(addresses=ours)
    parent.answer(ready=True)
    manager.run_game()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
