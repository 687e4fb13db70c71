"""A complete training step (generate, score, loss, backward, optimizer) against TRL's GRPOTrainer, in one process.

Both start from the same weights and do the same work: 8 prompts, 8 completions each, exactly 32 new tokens (EOS
forbidden), the same reward function, DAPO loss without KL, AdamW, clipping at 1.0, float32 on one thread. TRL's
transformers path runs without its default gradient checkpointing. TRL's steps are timed between its callbacks
`on_step_begin` and `on_step_end`, and each is followed by one of SwarmGame, so the arms alternate. Claim: at least 1.5
times as fast. Run as `python benchmarks/step_vs_trl.py`; `--smoke` is quick and writes no file. With `--cuda` the
model has the shape of Qwen2.5-0.5B with random weights in bfloat16 on a CUDA device, there are 9 prompts with 8
completions of 256 tokens, TRL keeps everything in bfloat16 (SwarmGame also a float32 copy of the weights), and the
figures go to `step_vs_trl_cuda`. Claims there: a step within 0.45 s, 15 times as fast.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import harness
import torch
from datasets import Dataset
from transformers import PrinterCallback, TrainerCallback
from trl import GRPOConfig as TrlConfig
from trl import GRPOTrainer as TrlTrainer

from swarmgame.game.components import ComponentContext
from swarmgame.game.state import Contribution, GameState, Prompt, Question, QuestionRef, Round
from swarmgame.models.loading import load_model, load_tokenizer
from swarmgame.models.warmstart import ensure_model
from swarmgame.trainer.grpo.config import GRPOConfig
from swarmgame.trainer.grpo.trainer import GRPOTrainer

COMPLETIONS = 8


@dataclass(frozen=True)
class Setup:
    """Device, model, and size of the work."""

    name: str
    device: str
    model: str
    new_tokens: int
    learning_rate: float
    prompts: int

    @property
    def questions(self) -> list[str]:
        return [f"Calculate {17 * index} + {index + 3}. Answer:" for index in range(self.prompts)]

    @property
    def dtype(self) -> torch.dtype:
        return torch.float32 if self.device == "cpu" else torch.bfloat16


CPU = Setup("step_vs_trl", "cpu", "builtin://tiny?hidden=96&accuracy=0", 32, 1e-4, 8)
SMOKE = replace(CPU, new_tokens=4)
CUDA = Setup("step_vs_trl_cuda", "cuda:0", "half a billion", 256, 1e-6, 9)


def reward(completions: Sequence[Sequence[int]]) -> list[float]:
    """Return cheap rewards that differ within every group, so that no group can be skipped."""
    return [sum(ids) % 1009 / 1009 for ids in completions]


class Ours:
    """One isolated peer."""

    def __init__(self, context: ComponentContext, setup: Setup) -> None:
        self.tokens = tokens = setup.new_tokens
        self.questions = [
            Question(QuestionRef("bench", "v1", 0, index), question) for index, question in enumerate(setup.questions)
        ]
        config = GRPOConfig(
            generations=COMPLETIONS,
            max_new_tokens=tokens,
            min_new_tokens=tokens,
            learning_rate=setup.learning_rate,
            loss_type="dapo",
        )
        self.trainer = GRPOTrainer(config, context)
        self.number = 0

    def step(self) -> float:
        """Run a step and return its seconds."""
        began = harness.now()
        round = Round(self.number, 0, self.number, 1, "bench")
        groups = tuple(self.trainer.generate([Prompt.from_question(question) for question in self.questions], round))
        contribution = Contribution(
            "bench",
            self.number,
            0,
            groups,
            {question.id: question.reference for question in self.questions},
            self.trainer.tokenizer,
        )
        state = GameState.begin(round, self.questions).with_contribution(contribution)
        rewards = {key: reward([rollout.token_ids for rollout in group.rollouts]) for key, group in state.groups()}
        metrics = self.trainer.train(state, rewards)
        seconds = harness.now() - began
        assert metrics["tokens_trained"] == len(self.questions) * COMPLETIONS * self.tokens, metrics
        self.number += 1
        return seconds


class Alternate(TrainerCallback):  # type: ignore[misc]
    """Times TRL's steps, and runs SwarmGame's between them."""

    def __init__(self, ours: Ours, warmups: int) -> None:
        self.ours, self.warmups = ours, warmups
        self.samples: dict[str, list[float]] = {"trl": [], "ours": []}
        self._began = 0.0

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        self._began = harness.now()

    def on_step_end(self, args: Any, state: Any, *_: Any, **__: Any) -> None:
        seconds = {"trl": harness.now() - self._began, "ours": self.ours.step()}
        if state.global_step > self.warmups:
            for name, value in seconds.items():
                self.samples[name].append(value)


def measure(setup: Setup, repeats: int, warmups: int, folder: Path) -> dict[str, list[float]]:
    """Return the seconds per step of each arm."""
    context = ComponentContext(model_uri=setup.model, cache=folder, peer="bench", device=setup.device)
    source = ensure_model(context)
    ours = Ours(context, setup)
    for _ in range(0 if setup.device == "cpu" else 2):  # compiles kernels and layers, then captures graphs
        ours.step()
    callback = Alternate(ours, warmups)
    lengths: set[int] = set()

    def trl_reward(completion_ids: Sequence[Sequence[int]], **_: Any) -> list[float]:
        lengths.update(map(len, completion_ids))
        return reward(completion_ids)

    config = TrlConfig(
        output_dir=str(folder / "trl"),
        per_device_train_batch_size=setup.prompts * COMPLETIONS,
        num_generations=COMPLETIONS,
        max_completion_length=setup.new_tokens,
        generation_kwargs={"min_new_tokens": setup.new_tokens},
        learning_rate=setup.learning_rate,
        lr_scheduler_type="constant",
        loss_type="dapo",
        beta=0.0,
        max_grad_norm=1.0,
        max_steps=warmups + repeats,
        gradient_checkpointing=False,
        bf16=setup.dtype == torch.bfloat16,
        use_cpu=setup.device == "cpu",
        logging_steps=10_000,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        shuffle_dataset=False,
    )
    trainer = TrlTrainer(
        model=load_model(source, dtype=setup.dtype, device=setup.device),
        args=config,
        reward_funcs=trl_reward,
        train_dataset=Dataset.from_list([{"prompt": question} for question in setup.questions]),
        processing_class=load_tokenizer(source),
        callbacks=[callback],
    )
    # It prints TRL's summary to standard output, which must have one line of JSON.
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    assert lengths == {setup.new_tokens}, f"TRL's completions have lengths {lengths}"
    return callback.samples


def figures_of(setup: Setup, samples: dict[str, list[float]]) -> dict[str, Any]:
    """Return figures and claims of a run."""
    figures = {name: harness.summary(seconds) for name, seconds in samples.items()}
    ratio = figures["trl"]["median"] / figures["ours"]["median"]
    shape = f"{setup.prompts} prompts x {COMPLETIONS} completions x {setup.new_tokens} tokens"
    what = f"median step of TRL's GRPOTrainer / ours, {shape}"
    claims = [harness.claim(what, ratio, at_least=1.5 if setup.device == "cpu" else 15.0)]
    if setup.device != "cpu":
        claims.append(harness.claim("seconds of our step", figures["ours"]["median"], at_most=0.45))
    work = {
        "model": setup.model,
        "prompts": setup.prompts,
        "completions": COMPLETIONS,
        "new_tokens": setup.new_tokens,
        "threads": 1,
    }
    return {"claims": claims, "work": work, "seconds": figures}


def on_a_device(folder: Path) -> Setup:
    """Return the setup for a CUDA device, with the model in a folder."""
    return replace(CUDA, model=f"file://{folder}")


def main() -> None:
    """Measure, print one line, and write it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--smoke", action="store_true", help="one repeat of little work, nothing written")
    parser.add_argument("--cuda", action="store_true", help="a larger model on a CUDA device")
    given = parser.parse_args()
    torch.set_num_threads(1)
    began = harness.machine() | ({"device": torch.cuda.get_device_name(0)} if given.cuda else {})
    with tempfile.TemporaryDirectory() as name:
        folder, setup = Path(name), SMOKE if given.smoke else CPU
        if given.cuda:
            from generation_cuda import half_billion
            from training_cuda import save

            save(half_billion("cuda:0"), folder / "model")
            setup = on_a_device(folder / "model")
        samples = measure(
            setup, 1 if given.smoke else (3 if given.cuda else 15), 1 if given.smoke or given.cuda else 3, folder
        )
    harness.publish(setup.name, figures_of(CUDA if given.cuda else setup, samples), began=began, smoke=given.smoke)


if __name__ == "__main__":
    main()
