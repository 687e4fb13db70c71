"""Sampling and training of another commit and this one in turn: operations and processor time of a step.

What was right before must not become slower. Each arm is an interpreter of its own that imports its own checkout, and
plays the same rounds with the same models on one thread: 8 prompts, 8 completions each, up to 32 new tokens, learning
rate 0, so that the weights and with them the sampled ids stay equal. Operations are those that torch dispatches; their
number is exact. Processor time is measured in turn; the ratio is the median over the turns. Claims: at most 1.02.

    python benchmarks/step_turns.py 4963c5c [--turns 60]

`--smoke` compares one interpreter of this checkout with itself, one turn of little work, and writes no file.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import harness

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("crds", "contracts", "worker", "operator")
BOUND = 1.02
SHAPE = {
    "hidden_size": 96,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
}
MODELS: dict[str, dict[str, Any]] = {
    "qwen2": {},
    "llama": {"head_dim": 16},
    "qwen3": {"head_dim": 16},
    "gpt_neox": {"num_key_value_heads": 6},
    "mistral": {"head_dim": 16, "sliding_window": 24},
}
"""Model types: the first three had the fast decoder before, the others the model's own forward."""
OPTIONS: dict[str, dict[str, Any]] = {
    "": {},
    ", EOS forbidden": {"min_new_tokens": 32},
    ", adapters": {"lora": {"rank": 4}},
}
"""Options of the trainer; all of them for the first model, the empty ones for the others."""
SHORT: dict[str, Any] = {"generations": 2, "max_new_tokens": 4}
SMOKE_OPTIONS: dict[str, dict[str, Any]] = {
    "": SHORT,
    ", EOS forbidden": SHORT | {"min_new_tokens": 4},
    ", adapters": SHORT | {"lora": {"rank": 4}},
}
"""The same with little work."""
SERVE = """
import hashlib, json, sys, time, warnings
warnings.filterwarnings("ignore")
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from swarmgame.game.components import ComponentContext
from swarmgame.game.state import Contribution, GameState, Prompt, Question, QuestionRef, Round
from swarmgame.trainer.grpo.config import GRPOConfig
from swarmgame.trainer.grpo.trainer import GRPOTrainer

class Count(TorchDispatchMode):
    total = 0
    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        self.total += 1
        return function(*arguments, **(options or {}))

torch.set_num_threads(1)
questions = [Question(QuestionRef("bench", "v1", 0, i), f"Calculate {17 * i} + {i + 3}. Answer:") for i in range(8)]
prompts = [Prompt.from_question(question) for question in questions]
references = {question.id: question.reference for question in questions}
trainers = {}

def trainer_of(uri, options):
    key = json.dumps([uri, options])
    if key not in trainers:
        config = GRPOConfig(**{"generations": 8, "max_new_tokens": 32, "learning_rate": 0.0, **options})
        trainers[key] = GRPOTrainer(config, ComponentContext(model_uri=uri, peer="bench"))
    return trainers[key]

def measured(count, call):
    if count:
        with Count() as counted:
            result = call()
        return result, counted.total
    began = time.process_time()
    result = call()
    return result, time.process_time() - began

for line in sys.stdin:
    uri, options, number, count = json.loads(line)
    trainer = trainer_of(uri, options)
    round = Round(number, 0, number, 1, "bench")
    groups, sampling = measured(count, lambda: tuple(trainer.generate(prompts, round)))
    made = Contribution("bench", number, 0, groups, references, trainer.tokenizer)
    state = GameState.begin(round, questions).with_contribution(made)
    rewards = {key: [sum(r.token_ids) % 1009 / 1009 for r in group.rollouts] for key, group in state.groups()}
    metrics, training = measured(count, lambda: trainer.train(state, rewards))
    assert metrics["steps"] == 1, metrics
    ids = json.dumps([[list(rollout.token_ids) for rollout in group.rollouts] for group in groups])
    digest = hashlib.blake2b(ids.encode(), digest_size=8).hexdigest()
    print(json.dumps({"sampling": sampling, "training": training, "ids": digest}), flush=True)
"""


class Arm:
    """A checkout, which plays rounds.

    Args:
        tree: its folder.
    """

    def __init__(self, tree: Path) -> None:
        path = os.pathsep.join(str(tree / name) for name in PACKAGES)
        variables = {"PYTHONPATH": path, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
        self._process = subprocess.Popen(
            [sys.executable, "-c", SERVE],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | variables,
        )

    def play(self, uri: str, options: dict[str, Any], number: int, *, count: bool = False) -> dict[str, Any]:
        """Return processor seconds of sampling and training, or their operations, and a digest of the sampled ids."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(json.dumps([uri, options, number, count]), file=self._process.stdin, flush=True)
        answer: dict[str, Any] = json.loads(self._process.stdout.readline())
        return answer

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


def compared(arms: dict[str, Arm], uri: str, options: dict[str, Any], turns: int) -> dict[str, Any]:
    """Return what a step costs in each arm, and how often both sampled the same ids."""
    for arm in arms.values():
        arm.play(uri, options, 0)  # the first step makes memory and caches
    operations = {name: arm.play(uri, options, 1, count=True) for name, arm in arms.items()}
    played: dict[str, list[dict[str, Any]]] = {name: [] for name in arms}
    for turn in range(turns):
        for name in list(arms) if turn % 2 else list(arms)[::-1]:
            played[name].append(arms[name].play(uri, options, 2 + turn))
    rounds = list(zip(played["other"], played["this"], strict=True))
    found: dict[str, Any] = {"same_ids": sum(one["ids"] == two["ids"] for one, two in rounds), "turns": turns}
    for what in ("sampling", "training"):
        found[what] = {
            "operations": {name: each[what] for name, each in operations.items()},
            "processor_ms": {
                name: harness.summary([1000 * p[what] for p in ps], digits=3) for name, ps in played.items()
            },
            "this_by_other": round(statistics.median(two[what] / one[what] for one, two in rounds), 4),
        }
    return found


def claims(figures: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    found = []
    for what in ("sampling", "training"):
        operations = [each[what]["operations"] for each in figures.values()]
        most = max(each["this"] / each["other"] for each in operations)
        found.append(harness.claim(f"operations of {what}, this / other, the largest ratio", most, at_most=BOUND))
        ratio = statistics.median(each[what]["this_by_other"] for each in figures.values())
        found.append(
            harness.claim(f"processor time of {what}, this / other, median of the models", ratio, at_most=BOUND)
        )
    return found


def save(folder: Path, kind: str, more: dict[str, Any]) -> str:
    """Write a random model, and return its address."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM
    from transformers.utils import logging

    from swarmgame.models.tokenizer import character_tokenizer

    logging.disable_progress_bar()
    tokenizer = character_tokenizer()
    ids = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    torch.manual_seed(7)
    options = SHAPE | more | ids | {"vocab_size": len(tokenizer), "tie_word_embeddings": False}
    AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **options)).save_pretrained(folder / kind)
    tokenizer.save_pretrained(folder / kind)
    return (folder / kind).as_uri()


@contextmanager
def checkout(commit: str, folder: Path) -> Iterator[Path]:
    """Check another commit out beside this clone."""
    other = folder / "other"
    subprocess.run(["git", "worktree", "add", "-q", "--detach", other, commit], cwd=ROOT, check=True)
    try:
        yield other
    finally:
        subprocess.run(["git", "worktree", "remove", "--force", other], cwd=ROOT, check=True)


def measure(
    arms: dict[str, Arm], folder: Path, turns: int, models: list[str], options_of: dict[str, dict[str, Any]]
) -> dict[str, dict[str, Any]]:
    """Return the figures of each model and options, and end the arms."""
    figures = {}
    try:
        for kind in models:
            uri = save(folder, kind, MODELS[kind])
            for name, options in options_of.items() if kind == models[0] else [("", {})]:
                figures[f"{kind}{name}"] = compared(arms, uri, options, turns)
                print(f"{kind}{name}", figures[f"{kind}{name}"], file=sys.stderr, flush=True)
    finally:
        for arm in arms.values():
            arm.close()
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("commit", nargs="?", default="HEAD", help="the other commit")
    parser.add_argument("--turns", type=int, default=60)
    parser.add_argument("--smoke", action="store_true", help="one interpreter with itself, and nothing is written")
    options = parser.parse_args()
    began = harness.machine()
    with tempfile.TemporaryDirectory(prefix="swarmgame-turns-") as name:
        folder = Path(name)
        if options.smoke:
            this = Arm(ROOT)
            figures = measure({"other": this, "this": this}, folder, 1, ["qwen2"], SMOKE_OPTIONS)
        else:
            with checkout(options.commit, folder) as other:
                arms = {"other": Arm(other), "this": Arm(ROOT)}
                figures = measure(arms, folder, options.turns, list(MODELS), OPTIONS)
    body = {"claims": claims(figures), "other": options.commit, "models": figures}
    harness.publish("step_turns", body, began=began, smoke=options.smoke)


if __name__ == "__main__":
    main()
