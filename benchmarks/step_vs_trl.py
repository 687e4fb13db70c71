"""A full training step: generate, score, loss, backward, optimizer. Ours against TRL's GRPOTrainer (its transformers path), in one process.

Both start from the same weights and do the same work: 8 prompts, 8 completions each, exactly 32 new tokens (EOS forbidden), the same reward
function, DAPO loss without KL, AdamW, clipping at 1.0, float32 on one thread. TRL's gradient checkpointing, on by default there, is off. TRL's steps
are timed between its own callbacks `on_step_begin` and `on_step_end`, and each is followed by one of ours, so the arms alternate.
Claim: at least 1.5 times as fast. Run as `python benchmarks/step_vs_trl.py`; `--smoke` is quick and writes nothing.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import harness
import torch
from datasets import Dataset
from transformers import PrinterCallback, TrainerCallback
from trl import GRPOConfig as TrlConfig
from trl import GRPOTrainer as TrlTrainer

from swarmgame.game.parts import Setting
from swarmgame.game.state import Contribution, GameState, Item, Prompt, Reference, Round
from swarmgame.models.loading import load_model, load_tokenizer
from swarmgame.models.warmstart import ensure_model
from swarmgame.trainer.grpo.config import GRPOConfig
from swarmgame.trainer.grpo.trainer import GRPOTrainer

MODEL = "builtin://tiny?hidden=96&accuracy=0"
PROMPTS, COMPLETIONS, NEW_TOKENS = 8, 8, 32
LEARNING_RATE = 1e-4
QUESTIONS = [f"Calculate {17 * index} + {index + 3}. Answer:" for index in range(PROMPTS)]


def reward(texts: Sequence[str]) -> list[float]:
    """Cheap, and different within every group, so that nothing can be skipped."""
    return [sum(map(ord, text)) / 1000 for text in texts]


class Ours:
    """One peer that speaks to nobody."""

    def __init__(self, setting: Setting) -> None:
        self.items = [Item(Reference("bench", "v1", 0, index), question) for index, question in enumerate(QUESTIONS)]
        config = GRPOConfig(
            generations=COMPLETIONS, max_new_tokens=NEW_TOKENS, min_new_tokens=NEW_TOKENS, learning_rate=LEARNING_RATE, loss_type="dapo"
        )
        self.trainer = GRPOTrainer(config, setting)
        self.number = 0

    def step(self) -> float:
        """Seconds of one step."""
        began = time.perf_counter()
        round = Round(self.number, 0, self.number, 1, "bench")
        groups = tuple(self.trainer.generate([Prompt.ask(item) for item in self.items], round))
        said = Contribution("bench", self.number, 0, groups, {item.id: item.reference for item in self.items}, self.trainer.tokenizer)
        state = GameState.begin(round, self.items).with_contribution(said)
        rewards = {key: reward([rollout.text for rollout in group.rollouts]) for key, group in state.groups()}
        metrics = self.trainer.train(state, rewards)
        seconds = time.perf_counter() - began
        assert metrics["tokens_trained"] == PROMPTS * COMPLETIONS * NEW_TOKENS, metrics
        self.number += 1
        return seconds


class Alternate(TrainerCallback):  # type: ignore[misc]
    """Times TRL's steps, and lets ours run between them."""

    def __init__(self, ours: Ours, warmups: int) -> None:
        self.ours, self.warmups = ours, warmups
        self.samples: dict[str, list[float]] = {"trl": [], "ours": []}
        self._began = 0.0

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        self._began = time.perf_counter()

    def on_step_end(self, args: Any, state: Any, *_: Any, **__: Any) -> None:
        seconds = {"trl": time.perf_counter() - self._began, "ours": self.ours.step()}
        if state.global_step > self.warmups:
            for name, value in seconds.items():
                self.samples[name].append(value)


def measure(repeats: int, warmups: int, folder: Path) -> dict[str, list[float]]:
    """Seconds a step of each arm."""
    setting = Setting(model_uri=MODEL, cache=folder, peer="bench")
    source = ensure_model(setting)
    callback = Alternate(Ours(setting), warmups)
    lengths: set[int] = set()

    def trl_reward(completion_ids: Sequence[Sequence[int]], completions: Sequence[str], **_: Any) -> list[float]:
        lengths.update(map(len, completion_ids))
        return reward(completions)

    config = TrlConfig(
        output_dir=str(folder / "trl"),
        per_device_train_batch_size=PROMPTS * COMPLETIONS,
        num_generations=COMPLETIONS,
        max_completion_length=NEW_TOKENS,
        generation_kwargs={"min_new_tokens": NEW_TOKENS},
        learning_rate=LEARNING_RATE,
        lr_scheduler_type="constant",
        loss_type="dapo",
        beta=0.0,
        max_grad_norm=1.0,
        max_steps=warmups + repeats,
        gradient_checkpointing=False,
        bf16=False,
        use_cpu=True,
        logging_steps=10_000,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        shuffle_dataset=False,
    )
    trainer = TrlTrainer(
        model=load_model(source, dtype=torch.float32, device="cpu"),
        args=config,
        reward_funcs=trl_reward,
        train_dataset=Dataset.from_list([{"prompt": question} for question in QUESTIONS]),
        processing_class=load_tokenizer(source),
        callbacks=[callback],
    )
    # It prints TRL's own summary to standard output, where one line of JSON is promised.
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    assert lengths == {NEW_TOKENS}, f"TRL's completions have lengths {lengths}"
    return callback.samples


def main() -> None:
    """Measures, prints one line, and keeps it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--smoke", action="store_true", help="two repeats, nothing written")
    smoke = parser.parse_args().smoke
    torch.set_num_threads(1)
    began = harness.machine()
    with tempfile.TemporaryDirectory() as folder:
        samples = measure(2 if smoke else 15, 1 if smoke else 3, Path(folder))
    figures = {name: harness.summary(seconds) for name, seconds in samples.items()}
    ratio = figures["trl"]["median"] / figures["ours"]["median"]
    claims = [harness.claim("median step of TRL's GRPOTrainer / ours, 8 prompts x 8 completions x 32 tokens", ratio, at_least=1.5)]
    work = {"model": MODEL, "prompts": PROMPTS, "completions": COMPLETIONS, "new_tokens": NEW_TOKENS, "threads": 1}
    harness.publish("step_vs_trl", {"claims": claims, "work": work, "seconds": figures}, began=began, smoke=smoke)


if __name__ == "__main__":
    main()
