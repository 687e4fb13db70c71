"""A step of PPO (`baseline: value`) against one of GRPO: the same model, questions and rollouts, in one process.

Each arm samples 8 prompts with 8 completions of up to 32 tokens and makes one update from them; the arms take turns.
The learning rate is 0, so both sample the same ids in every round. PPO reads all rollouts once more before the update,
for the values that its advantages come from. Rewards differ within every group, so that GRPO leaves out none. A step is
sampling and update; the update alone is shown beside it. Claim: at most 1.5 times GRPO's step. Run as
`python benchmarks/ppo_step.py`; `--smoke` is quick and writes no file.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import harness
import torch

from swarmgame.game.components import ComponentContext
from swarmgame.game.state import Contribution, GameState, Prompt, Question, QuestionRef, Round
from swarmgame.trainer.grpo.config import GRPOConfig
from swarmgame.trainer.grpo.trainer import GRPOTrainer

COMPLETIONS, PROMPTS, TOKENS = 8, 8, 32
SMOKE_TOKENS = 4
MODEL = "builtin://tiny?hidden=96&accuracy=0"
BOUND = 1.5
ARMS: dict[str, dict[str, Any]] = {"grpo": {}, "ppo": {"baseline": "value", "scale_rewards": "batch"}}


class Arm:
    """A peer that plays rounds by itself."""

    def __init__(self, context: ComponentContext, tokens: int, **options: Any) -> None:
        shape = {"generations": COMPLETIONS, "max_new_tokens": tokens, "learning_rate": 0.0}
        self.trainer = GRPOTrainer(GRPOConfig(**shape, **options), context)
        self.questions = [
            Question(QuestionRef("bench", "v1", 0, index), f"Calculate {17 * index} + {index + 3}. Answer:")
            for index in range(PROMPTS)
        ]
        self.references = {question.id: question.reference for question in self.questions}

    def step(self, number: int) -> tuple[float, float, str]:
        """Play a round; return its seconds, those of its update, and what was sampled."""
        trainer, round = self.trainer, Round(number, 0, number, 1, "bench")
        prompts = [Prompt.from_question(question) for question in self.questions]
        began = harness.now()
        groups = tuple(trainer.generate(prompts, round))
        sampled = harness.now()
        made = Contribution("bench", number, 0, groups, self.references, trainer.tokenizer, trainer.sampling_version)
        state = GameState.begin(round, self.questions).with_contribution(made)
        rewards = {
            key: [sum(rollout.token_ids) % 1009 / 1009 for rollout in group.rollouts] for key, group in state.groups()
        }
        metrics = trainer.train(state, rewards)
        ended = harness.now()
        assert metrics["steps"] == 1, metrics
        return ended - began, ended - sampled, repr([[r.token_ids for r in group.rollouts] for group in groups])


def measure(repeats: int, warmups: int, tokens: int, folder: Path) -> dict[str, dict[str, list[float]]]:
    """Return the seconds of each arm's steps, and of their updates."""
    context = ComponentContext(model_uri=MODEL, cache=folder, peer="bench")
    arms = {name: Arm(context, tokens, **options) for name, options in ARMS.items()}
    seconds: dict[str, dict[str, list[float]]] = {name: {"step": [], "update": []} for name in arms}
    for number in range(warmups + repeats):
        order = list(arms) if number % 2 else list(arms)[::-1]
        played = {name: arms[name].step(number) for name in order}
        assert len({ids for _, _, ids in played.values()}) == 1, "the arms sampled different rollouts"
        if number >= warmups:
            for name, (step, update, _) in played.items():
                seconds[name]["step"].append(step)
                seconds[name]["update"].append(update)
    return seconds


def main() -> None:
    """Measure, print one line, and write it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--smoke", action="store_true", help="one repeat of little work, nothing written")
    given = parser.parse_args()
    torch.set_num_threads(1)
    began = harness.machine()
    tokens = SMOKE_TOKENS if given.smoke else TOKENS
    with tempfile.TemporaryDirectory() as name:
        seconds = measure(1 if given.smoke else 40, 1 if given.smoke else 3, tokens, Path(name))
    figures = {
        arm: {what: harness.summary(each, digits=4) for what, each in found.items()} for arm, found in seconds.items()
    }
    shape = f"{PROMPTS} prompts x {COMPLETIONS} completions x {tokens} tokens"
    ratio = figures["ppo"]["step"]["median"] / figures["grpo"]["step"]["median"]
    claims = [harness.claim(f"median step of PPO / GRPO, {shape}", ratio, at_most=BOUND)]
    update = figures["ppo"]["update"]["median"] / figures["grpo"]["update"]["median"]
    work = {"model": MODEL, "prompts": PROMPTS, "completions": COMPLETIONS, "new_tokens": tokens, "threads": 1}
    body = {"claims": claims, "work": work, "update_ratio": round(update, 4), "seconds": figures}
    harness.publish("ppo_step", body, began=began, smoke=given.smoke)


if __name__ == "__main__":
    main()
