"""The update of the trainer `trl` against TRL's GRPOTrainer alone, over the same finished rollouts, in one process.

Both arms get 8 prompts with 8 completions each, sampled once: TRL alone through its `rollout_func`, the trainer `trl`
as a round's groups, in one micro-batch. An update is everything from there to the changed weights: rewards, advantages,
loss, backward pass, clipping, AdamW, metrics. TRL's steps are timed between its callbacks `on_step_begin` and
`on_step_end`, and each is followed by one of the trainer, so the arms alternate; `grpo` is a third arm, to compare.
What the swarm adds (bounds of other peers, statistics, uses) is in the trainer's time; sampling is in neither. Claim:
at most 1.1 times TRL's time. Run as `python benchmarks/trl_overhead.py`; `--smoke` is quick and writes no file.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import harness
import torch
from datasets import Dataset
from transformers import PrinterCallback, TrainerCallback
from trl import GRPOConfig as TrlArguments
from trl import GRPOTrainer as TrlGRPOTrainer

from swarmgame.game.components import ComponentContext
from swarmgame.game.state import Contribution, GameState, Prompt, Question, QuestionRef, Round
from swarmgame.models.loading import load_model, load_tokenizer
from swarmgame.trainer.grpo.config import GRPOConfig
from swarmgame.trainer.grpo.trainer import GRPOTrainer
from swarmgame.trainer.trl.config import TrlConfig
from swarmgame.trainer.trl.trainer import TrlTrainer

COMPLETIONS, PROMPTS, TOKENS = 8, 8, 32
SMOKE_TOKENS = 4
MODEL = "builtin://tiny?hidden=96&accuracy=0"
OPTIONS: dict[str, Any] = {"loss_type": "dapo", "learning_rate": 1e-6, "lr_scheduler_type": "constant"}


def reward(completions: Sequence[Sequence[int]]) -> list[float]:
    """Return cheap rewards that differ within every group, so that no group can be skipped."""
    return [sum(ids) % 1009 / 1009 for ids in completions]


class Ours:
    """One isolated peer, which trains on the same rollouts in every round."""

    def __init__(self, trainer: GRPOTrainer) -> None:
        self.trainer = trainer
        self.questions = [
            Question(QuestionRef("bench", "v1", 0, index), f"Calculate {17 * index} + {index + 3}. Answer:")
            for index in range(PROMPTS)
        ]
        prompts = [Prompt.from_question(question) for question in self.questions]
        self.groups = tuple(self.trainer.generate(prompts, Round(0, 0, 0, 1, "bench")))
        self.number = 0

    def step(self) -> float:
        """Run an update and return its seconds."""
        references = {question.id: question.reference for question in self.questions}
        version = self.trainer.policy_version
        made = Contribution("bench", self.number, 0, self.groups, references, self.trainer.tokenizer, version)
        state = GameState.begin(Round(self.number, 0, self.number, 1, "bench"), self.questions).with_contribution(made)
        began = harness.now()
        rewards = {key: reward([rollout.token_ids for rollout in group.rollouts]) for key, group in state.groups()}
        metrics = self.trainer.train(state, rewards)
        seconds = harness.now() - began
        assert metrics["steps"] == 1, metrics
        self.number += 1
        return seconds


class Alternate(TrainerCallback):  # type: ignore[misc]
    """Times TRL's updates, and runs those of the trainer between them."""

    def __init__(self, arms: Mapping[str, Ours], warmups: int) -> None:
        self.arms, self.warmups = arms, warmups
        self.samples: dict[str, list[float]] = {name: [] for name in ("trl", *arms)}
        self._began = 0.0

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        self._began = harness.now()

    def on_step_end(self, args: Any, state: Any, *_: Any, **__: Any) -> None:
        seconds = {"trl": harness.now() - self._began, **{name: arm.step() for name, arm in self.arms.items()}}
        if state.global_step > self.warmups:
            for name, value in seconds.items():
                self.samples[name].append(value)


def measure(repeats: int, warmups: int, tokens: int, folder: Path) -> dict[str, list[float]]:
    """Return the seconds per update of each arm."""
    context = ComponentContext(model_uri=MODEL, cache=folder, peer="bench")
    same = {"generations": COMPLETIONS, "max_new_tokens": tokens, "tokens_per_micro_batch": 1 << 20}
    ours = Ours(TrlTrainer(TrlConfig(**same, options=dict(OPTIONS)), context))
    grpo = Ours(GRPOTrainer(GRPOConfig(**same, learning_rate=OPTIONS["learning_rate"]), context))
    source = ours.trainer.policy.source
    rollouts = [(group.prompt.token_ids, rollout) for group in ours.groups for rollout in group.rollouts]
    calls: list[int] = []

    def finished(prompts: Sequence[Any], _: Any) -> dict[str, Any]:
        calls.append(len(prompts))
        return {
            "prompt_ids": [list(prompt) for prompt, _ in rollouts],
            "completion_ids": [list(rollout.token_ids) for _, rollout in rollouts],
            "logprobs": [list(rollout.logprobs) for _, rollout in rollouts],
        }

    callback = Alternate({"ours": ours, "grpo": grpo}, warmups)
    trainer = TrlGRPOTrainer(
        model=load_model(source, dtype=torch.float32, device="cpu"),
        args=TrlArguments(
            output_dir=str(folder / "trl"),
            per_device_train_batch_size=PROMPTS * COMPLETIONS,
            num_generations=COMPLETIONS,
            max_completion_length=tokens,
            max_steps=warmups + repeats,
            gradient_checkpointing=False,
            bf16=False,
            use_cpu=True,
            logging_steps=10_000,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            shuffle_dataset=False,
            **OPTIONS,
        ),
        reward_funcs=lambda completion_ids, **_: reward(completion_ids),
        train_dataset=Dataset.from_list([{"prompt": question.text} for question in ours.questions]),
        processing_class=load_tokenizer(source),
        rollout_func=finished,
        callbacks=[callback],
    )
    # It prints TRL's summary to standard output, which must have one line of JSON.
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    assert calls == [len(rollouts)] * (warmups + repeats), f"TRL generated for {calls} prompts"
    return callback.samples


def main() -> None:
    """Measure, print one line, and write it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--smoke", action="store_true", help="one repeat of little work, nothing written")
    given = parser.parse_args()
    torch.set_num_threads(1)
    began = harness.machine()
    tokens = SMOKE_TOKENS if given.smoke else TOKENS
    with tempfile.TemporaryDirectory() as name:
        samples = measure(1 if given.smoke else 30, 1 if given.smoke else 3, tokens, Path(name))
    figures = {name: harness.summary(seconds) for name, seconds in samples.items()}
    ratio = figures["ours"]["median"] / figures["trl"]["median"]
    shape = f"{PROMPTS} prompts x {COMPLETIONS} completions x {tokens} tokens"
    claims = [harness.claim(f"median update of the trainer trl / TRL alone, {shape}", ratio, at_most=1.1)]
    work = {"model": MODEL, "prompts": PROMPTS, "completions": COMPLETIONS, "new_tokens": tokens, "threads": 1}
    harness.publish(
        "trl_overhead", {"claims": claims, "work": work, "seconds": figures}, began=began, smoke=given.smoke
    )


if __name__ == "__main__":
    main()
