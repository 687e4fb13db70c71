"""A real language model without a hub: two peers train adapters of SmolLM2-135M, which a Python package ships.

Three parts: the game of examples/04-smollm; the same with shuffled rewards; and the first model beside the exported
one, both through `transformers.pipeline` on the game's held-out questions. Claims: the game takes at most 15 minutes,
its preparation included; the held-out mean rises by at least 0.10, and by less than 0.05 in the control; and the
exported model answers more held-out questions than the first one.
Run as `python benchmarks/smollm.py`; `--smoke` is quick and writes nothing.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from harness import claim, machine, publish

from swarmgame.game.evaluation import standard_error
from swarmgame.game.state import Question
from swarmgame.models.warmstart import ensure_model
from swarmgame.runtime.assembly import context_of, local_modules, resolve_game
from swarmgame_api import load_manifest

EXAMPLE = Path(__file__).parent.parent / "examples" / "04-smollm"
CONTROL = "--set=game.rewards.use=control:ShuffledRewards"
SMOKE = ("--rounds=1", "--set=game.evaluation.questions=2")
MINUTES = 15
LONG = 32
"""New tokens that are enough for every answer of both models."""
SHOWN = 4


def play(runs: Path, name: str, *more: str) -> dict[str, Any]:
    """Play one run, unless the folder has it; return its seconds and the held-out rewards before and after training."""
    game = EXAMPLE / "game.yaml"
    command = [sys.executable, "-m", "swarmgame", "run", str(game), f"--runs={runs}", f"--name={name}", *more]
    subprocess.run(command, check=True, timeout=3 * MINUTES * 60, stdout=subprocess.DEVNULL)
    summary = json.loads((runs / name / "summary.json").read_text())
    held_out = summary["held_out"]
    return {
        "seconds": round(summary["wall_seconds"], 1),
        "rounds": summary["rounds"],
        "questions": held_out["questions"],
        "before": held_out["total"]["first"],
        "after": held_out["total"]["last"],
        "change": held_out["total"]["difference"],
        "standard_error": held_out["total"]["error"],
        "training_reward": [summary["first10"], summary["last10"]],
        "external_groups": summary["external"],
        "tokens": summary["tokens"],
    }


def compare(exported: Path, questions: int) -> list[dict[str, Any]]:
    """Return the scores of the first and of the exported model on the game's held-out questions: with the game's limit
    of tokens, and with one that cuts no answer.
    """
    manifest = load_manifest(EXAMPLE / "game.yaml")
    with local_modules(EXAMPLE):
        resolved = resolve_game(manifest, EXAMPLE)
        context = context_of(manifest)
        data = resolved.data.component(resolved.data.config, context)
        rewards = resolved.rewards.component(resolved.rewards.config, context)
    base = Path(ensure_model(context).name)
    limits = (manifest.spec.game.trainer.with_["maxNewTokens"], LONG)
    try:
        held_out = data.evaluation_data(questions)
        prompts = [
            [{"role": each.role, "content": each.content} for each in data.prompt(question).messages]
            for question in held_out
        ]
        return [_compared(rewards, held_out, prompts, (base, exported), longest) for longest in limits]
    finally:
        rewards.close()
        data.close()


def _compared(
    rewards: Any,
    questions: Sequence[Question],
    prompts: Sequence[list[dict[str, str]]],
    models: tuple[Path, Path],
    longest: int,
) -> dict[str, Any]:
    texts = [answers(model, prompts, longest) for model in models]
    scored = [rewards.score(list(zip(questions, each, strict=True))) for each in texts]
    before, after = ([float(score or 0.0) for score in each] for each in scored)
    change = [last - first for first, last in zip(before, after, strict=True)]
    shown = [
        {"question": prompt[-1]["content"], "before": first, "after": last}
        for prompt, first, last in list(zip(prompts, *texts, strict=True))[:SHOWN]
    ]
    return {
        "max_new_tokens": longest,
        "before": statistics.fmean(before),
        "after": statistics.fmean(after),
        "change": statistics.fmean(change),
        "standard_error": standard_error(change),
        "answers": shown,
    }


def answers(folder: Path, prompts: Sequence[list[dict[str, str]]], longest: int) -> list[str]:
    """Return the likeliest answer to each prompt, as a user of transformers gets it."""
    import torch
    from transformers import pipeline

    generate = pipeline("text-generation", model=str(folder), dtype=torch.float32)
    # One at a time: padding would change the sums, and so perhaps an answer.
    return [
        generate(prompt, max_new_tokens=longest, do_sample=False, return_full_text=False)[0]["generated_text"]
        for prompt in prompts
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--smoke", action="store_true", help="one round, two questions, nothing written")
    parser.add_argument("--keep", type=Path, help="keep the runs and the exported model in this folder")
    given = parser.parse_args()
    more, questions = (SMOKE, 2) if given.smoke else ((), 64)
    began = machine()
    with tempfile.TemporaryDirectory() as temporary:
        runs = given.keep or Path(temporary)
        game = play(runs, "smollm", *more)
        control = play(runs, "control", CONTROL, *more)
        model = runs / "model"
        export = [sys.executable, "-m", "swarmgame", "export", "smollm", str(model), f"--runs={runs}", "--force"]
        subprocess.run(export, check=True, stdout=subprocess.DEVNULL)
        compared = compare(model, questions)
    claims = [
        claim("minutes of the game, preparation included", game["seconds"] / 60, at_most=MINUTES),
        claim("change of the held-out mean", game["change"], at_least=0.10),
        claim("change of the held-out mean, shuffled rewards", control["change"], at_most=0.05),
        *(
            claim(f"change through pipeline, {each['max_new_tokens']} new tokens", each["change"], at_least=0.05)
            for each in compared
        ),
    ]
    shape = {
        "peers": 2,
        "model": "SmolLM2-135M-Instruct, float32",
        "game": "04-smollm",
        "held_out_questions": questions,
    }
    body = {"claims": claims, "shape": shape, "game": game, "control": control, "pipeline": compared}
    publish("smollm", body, began=began, smoke=given.smoke)


if __name__ == "__main__":
    main()
