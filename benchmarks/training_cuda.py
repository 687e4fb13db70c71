"""Training on a CUDA device: one GRPO step on given rollouts, packed and padded, and its share of the matrix rate.

Arms: `packed` is one sequence without padding with each prompt once, compiled layers and fused log-probabilities;
`packed_uncompiled` is the same without torch.compile; `padded` is the plain pass. Each arm is a complete
`GRPOTrainer.train` (loss, backward, clipping, AdamW) of 9 prompts × 8 completions × 256 tokens on a model of the shape
of Qwen2.5-0.5B with random weights in bfloat16, without sampling. The share of an arm is useful operations / time /
rate. Useful are 6 × parameters of the layers × tokens (prompts once, completions once) + 6 × parameters of the head ×
completion tokens + 12 × query heads × head dimension × layers × pairs of a token and one that it attends to;
recomputation for the backward pass does not count. The rate is that of a product of two random 8192 × 8192 matrices in
bfloat16, measured in the same run. Run as `python benchmarks/training_cuda.py`; `--profile` prints the kernels of one
packed step instead; `--smoke` is tiny, also runs on a CPU, and writes no file.
"""

from __future__ import annotations

import argparse
import math
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import harness
import torch
from generation_cuda import half_billion, small
from transformers import logging

from swarmgame.game.components import ComponentContext
from swarmgame.game.state import (
    Contribution,
    FinishReason,
    GameState,
    Group,
    Prompt,
    Question,
    QuestionRef,
    Rollout,
    Round,
)
from swarmgame.models.tokenizer import character_tokenizer
from swarmgame.trainer.grpo.config import GRPOConfig
from swarmgame.trainer.grpo.trainer import GRPOTrainer

ARMS: dict[str, dict[str, Any]] = {
    "packed": {"layout": "packed", "compile": "auto"},
    "packed_uncompiled": {"layout": "packed", "compile": False},
    "padded": {"layout": "padded", "compile": False},
}


@dataclass(frozen=True)
class Work:
    """Rollouts of one step; prompts have `prompt_tokens` on average, in nine different lengths."""

    prompts: int
    completions: int
    new_tokens: int
    prompt_tokens: int

    @property
    def prompt_lengths(self) -> list[int]:
        return [self.prompt_tokens + index % 9 - 4 for index in range(self.prompts)]

    def operations(self, model: Any) -> float:
        """Return the useful floating-point operations of a step, forward and backward."""
        config = model.config
        tokens = sum(self.prompt_lengths) + self.prompts * self.completions * self.new_tokens
        layers = sum(parameter.numel() for parameter in model.model.layers.parameters())
        scored = self.prompts * self.completions * self.new_tokens
        new = self.new_tokens
        pairs = sum(
            length * (length + 1) / 2 + self.completions * (new * length + new * (new + 1) / 2)
            for length in self.prompt_lengths
        )
        attention = 12 * config.hidden_size * config.num_hidden_layers * pairs
        return 6 * layers * tokens + 6 * model.lm_head.weight.numel() * scored + attention


WORK, SMOKE = Work(9, 8, 256, 64), Work(2, 4, 16, 12)


def rollouts(work: Work, tokenizer: str, vocabulary: int) -> tuple[GameState, dict[Any, list[float]]]:
    """Return a round's state, and rewards that differ in every group, so that no group is skipped."""
    random = torch.Generator().manual_seed(1)
    questions = [Question(QuestionRef("bench", "v1", 0, index), f"question {index}") for index in range(work.prompts)]
    groups = []
    for question, length in zip(questions, work.prompt_lengths, strict=True):
        ids = [
            torch.randint(5, 500, (size,), generator=random).tolist()
            for size in (length, *[work.new_tokens] * work.completions)
        ]
        rollouts = tuple(
            Rollout("", tuple(row), (-math.log(vocabulary),) * len(row), FinishReason.LENGTH) for row in ids[1:]
        )
        groups.append(Group(replace(Prompt.from_question(question), token_ids=tuple(ids[0])), rollouts))
    references = {question.id: question.reference for question in questions}
    round = Round(0, 0, 0, 1, "bench")
    state = GameState.begin(round, questions).with_contribution(
        Contribution("bench", 0, 0, tuple(groups), references, tokenizer)
    )
    return state, {key: [float(index) for index in range(work.completions)] for key, _ in state.groups()}


def step(trainer: GRPOTrainer, work: Work) -> Callable[[], float]:
    state, rewards = rollouts(work, trainer.tokenizer, trainer.policy.vocabulary)

    def seconds() -> float:
        began = harness.now()
        metrics = trainer.train(state, rewards)
        took = harness.now() - began
        assert metrics["tokens_trained"] == work.prompts * work.completions * work.new_tokens, metrics
        assert metrics["steps"] == 1, metrics
        return took

    return seconds


def matrix_rate(device: str, size: int) -> float:
    """Return the operations per second of a product of two random square matrices in bfloat16."""
    left, right = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))
    torch.mm(left, right)
    times = []
    for _ in range(3):
        began = harness.now()
        for _ in range(10):
            torch.mm(left, right)
        times.append((harness.now() - began) / 10)
    return 2 * size**3 / sorted(times)[1]


def profile(call: Callable[[], float]) -> None:
    """Print the device's time of one step by kernel."""
    for _ in range(2):
        call()
    with torch.profiler.profile(activities=list(torch.profiler.supported_activities())) as recorded:
        took = call()
    print(recorded.key_averages().table(sort_by="self_cuda_time_total", row_limit=25, max_name_column_width=90))
    print(f"{1000 * took:.1f} ms with the profiler on")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--smoke", action="store_true", help="a tiny model and one repeat, nothing written")
    parser.add_argument("--profile", action="store_true", help="print the kernels of one packed step, and nothing else")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--tokens-per-micro-batch", type=int, help="instead of the trainer's own choice")
    parser.add_argument("--arms", nargs="+", choices=list(ARMS), default=list(ARMS))
    given = parser.parse_args()
    logging.set_verbosity_error()
    device = "cuda:0" if torch.cuda.is_available() else "cpu"
    began = harness.machine() | {"device": torch.cuda.get_device_name(0) if device != "cpu" else "cpu"}
    with tempfile.TemporaryDirectory() as folder:
        save(small(device) if given.smoke else half_billion(device), Path(folder))
        if given.profile:
            work = SMOKE if given.smoke else WORK
            profile(step(trainer_of(Path(folder), device, work, "packed", given.tokens_per_micro_batch), work))
            return
        work, repeats = (SMOKE, 1) if given.smoke else (WORK, given.repeats)
        body = measure(Path(folder), device, work, given.arms, repeats, given.tokens_per_micro_batch)
    harness.publish("training_cuda", body, began=began, smoke=given.smoke)


def save(model: Any, folder: Path) -> None:
    """Write the model with a tokenizer of characters, as trainers load it."""
    model.save_pretrained(folder)
    character_tokenizer().save_pretrained(folder)


def trainer_of(folder: Path, device: str, work: Work, arm: str, tokens_per_micro_batch: int | None) -> GRPOTrainer:
    config = GRPOConfig(
        max_new_tokens=work.new_tokens,
        learning_rate=1e-6,
        tokens_per_micro_batch=tokens_per_micro_batch or "auto",
        **ARMS[arm],
    )
    return GRPOTrainer(config, ComponentContext(model_uri=f"file://{folder}", cache=folder, device=device))


def measure(
    folder: Path, device: str, work: Work, arm_names: list[str], repeats: int, tokens_per_micro_batch: int | None
) -> dict[str, Any]:
    """Return figures and claims of the arms, on the model in a folder."""
    trainers = {name: trainer_of(folder, device, work, name, tokens_per_micro_batch) for name in arm_names}
    calls = {name: step(trainer, work) for name, trainer in trainers.items()}
    model = trainers[arm_names[0]].policy.model
    rate = matrix_rate(device, 8192 if device != "cpu" else 512)
    samples = harness.interleave(calls, repeats=repeats, warmups=2)
    seconds = {arm: harness.summary(values) for arm, values in samples.items()}
    operations = work.operations(model)
    tokens = sum(work.prompt_lengths) + work.prompts * work.completions * work.new_tokens
    arms = {
        arm: {
            "milliseconds": round(1000 * found["median"], 1),
            "tokens_per_second": round(tokens / found["median"]),
            "share_of_matrix_rate": round(operations / found["median"] / rate, 3),
        }
        for arm, found in seconds.items()
    }
    claims = []
    if "packed" in arms:
        claims.append(
            harness.claim("share of the card's matrix rate", arms["packed"]["share_of_matrix_rate"], at_least=0.45)
        )
    return {
        "claims": claims,
        "shape": {
            "parameters": sum(parameter.numel() for parameter in model.parameters()),
            "dtype": str(model.dtype).removeprefix("torch."),
        },
        "work": {
            "prompts": work.prompts,
            "completions": work.completions,
            "new_tokens": work.new_tokens,
            "tokens": tokens,
        },
        "useful_teraflop": round(operations / 1e12, 3),
        "matrix_teraflop_per_second": round(rate / 1e12, 1),
        "arms": arms,
        "seconds": seconds,
    }


if __name__ == "__main__":
    main()
