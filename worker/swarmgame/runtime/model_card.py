"""The record of an exported model, and its model card (README.md with the front matter of the hub).

Pure: from a manifest and the finished rounds of a peer to texts. Both may be published: they have no variable of the
environment, no option of data, rewards or a trainer of the game's own, and no address of a generation server.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from statistics import fmean
from typing import Any

import yaml

from swarmgame.observability.peer_progress import Line, is_lost, number, numbers
from swarmgame_api.manifest import SwarmGame

ENDS = 10
"""Rounds at both ends of the training, over which rewards are averaged."""
PLACE = "path/of/this/folder"
TAGS = ("swarmgame", "reinforcement-learning")
_CODE = {
    "transformers": f"""from transformers import pipeline

generate = pipeline("text-generation", model="{PLACE}")
print(generate("…"))
""",
    "peft": f"""from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

base = AutoModelForCausalLM.from_pretrained("{{base}}")
model = PeftModel.from_pretrained(base, "{PLACE}")
tokenizer = AutoTokenizer.from_pretrained("{PLACE}")
""",
    "policy": f"""from swarmgame.trainer.policies import load_policy

policy = load_policy("{PLACE}")
logits = policy(observations)  # [B, …] -> [B, actions]
""",
    "modules": f"""from safetensors.torch import load_model

# `module`: an instance of the class that the table below names
load_model(module, "{PLACE}/{{file}}")
""",
}


@dataclass(frozen=True)
class EvaluationRecord:
    """One held-out evaluation.

    Args:
        rounds: finished rounds of the policy.
        reward: mean over all rollouts.
        passed: share of the questions that were passed; None where it is unknown.
        environments: the reward by environment.
        error: standard error of the reward; None where it is unknown.
    """

    rounds: int
    reward: float
    passed: float | None
    environments: Mapping[str, float] = field(default_factory=dict)
    error: float | None = None


@dataclass(frozen=True)
class ExportRecord:
    """What a model was made from: `swarmgame.json` in its folder.

    Args:
        peer, peer_id: number in the run, and libp2p id (empty where no round was finished).
        rounds, max_rounds: finished rounds, and those of the game.
        base, revision: the model's address in the manifest; empty for a policy of the trainer's own.
        trainer, options: the trainer's name, and the options of a built-in one.
        data, environments, rewards: names.
        first_reward, last_reward: means over the first and the last rounds, up to 10 each; None when nothing was
            scored.
        external: groups of other peers that it was trained on.
        authors: number of peers that those came from.
        evaluations: on held-out questions, in order.
        untrained: the evaluation before the first update; None without one.
    """

    game: str
    release: str
    peer: int
    peer_id: str
    rounds: int
    max_rounds: int
    base: str
    revision: str
    trainer: str
    options: Mapping[str, Any]
    data: str
    environments: tuple[str, ...]
    rewards: str
    first_reward: float | None
    last_reward: float | None
    external: int
    authors: int
    evaluations: tuple[EvaluationRecord, ...] = ()
    untrained: EvaluationRecord | None = None

    @property
    def evaluation(self) -> EvaluationRecord | None:
        """The evaluation of exactly these weights; None where there was none."""
        return next((each for each in self.evaluations if each.rounds == self.rounds), None)

    @property
    def base_on_hub(self) -> str:
        """The base model's name on the hub; empty for one from elsewhere."""
        return self.base.removeprefix("hf://") if self.base.startswith("hf://") else ""

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def make_record(manifest: SwarmGame, lines: Iterable[Line], *, peer: int, rounds: int, release: str) -> ExportRecord:
    """Return the record of a peer's policy.

    Args:
        lines: of its finished rounds, in order; those of later rounds are left out.
        rounds: finished rounds of the policy.
    """
    game, model = manifest.spec.game, manifest.spec.model
    played = [line for line in lines if line["round"] < rounds and not is_lost(line)]
    rewards = [reward for line in played if (reward := number(line, "reward")) is not None]
    ends = min(ENDS, max(1, len(rewards) // 2))
    external = [numbers(line, "external") for line in played]
    return ExportRecord(
        game=manifest.metadata.name,
        release=release,
        peer=peer,
        peer_id=str(played[-1].get("peer", "")) if played else "",
        rounds=rounds,
        max_rounds=game.max_rounds,
        base=model.uri if model else "",
        revision=model.revision if model else "",
        trainer=game.trainer.use,
        options={} if ":" in game.trainer.use else {k: v for k, v in game.trainer.with_.items() if k != "sampler"},
        data=game.data.use,
        environments=tuple(sorted({name for line in played for name in numbers(line, "environments")})),
        rewards=game.rewards.use,
        first_reward=fmean(rewards[:ends]) if rewards else None,
        last_reward=fmean(rewards[-ends:]) if rewards else None,
        external=int(sum(sum(each.values()) for each in external)),
        authors=len({author for each in external for author in each}),
        evaluations=evaluations_of(played),
        untrained=next((each for line in played if (each := _evaluation(line, "first_evaluation"))), None),
    )


def evaluations_of(lines: Iterable[Line]) -> tuple[EvaluationRecord, ...]:
    """Return the held-out evaluations in the lines of finished rounds; those without a number, or of weights that were
    lost, are left out.
    """
    lines = (line for line in lines if not is_lost(line))
    return tuple(found for line in lines if (found := _evaluation(line, "evaluation")) is not None)


def _evaluation(line: Line, key: str) -> EvaluationRecord | None:
    reward = number(line, key, "average", "all")
    if reward is None:
        return None
    return EvaluationRecord(
        rounds=line["round"] + (key == "evaluation"),
        reward=reward,
        passed=number(line, key, "passed", "all"),
        environments={name: value for name, value in numbers(line, key, "average").items() if name != "all"},
        error=number(line, key, "errors", "all"),
    )


def model_card(record: ExportRecord, files: Iterable[str]) -> str:
    """Return the README.md of an exported model.

    Args:
        files: names of the folder's files, which show how it is loaded.
    """
    names = sorted(files)
    kind = _kind(names)
    title = f"{record.game}: peer {record.peer} after {record.rounds} of {record.max_rounds} rounds"
    base = record.base_on_hub or record.base.partition("?")[0].partition("://")[0]
    package = record.base.removeprefix("pypi://").partition("/")[0]
    origin = {
        "": "a policy that its own trainer makes",
        "builtin": "the builtin model",
        "file": "a local model",
        "pypi": f"the model in the Python package {package}",
    }.get(base, base)
    parts = [
        f"---\n{_front_matter(record, kind)}---\n",
        f"# {title}\n",
        f"Trained by reinforcement learning in a swarm, with SwarmGame {record.release}, "
        f"from {origin}. {_adapters(kind)}".rstrip()
        + "\n",
        f"## Load\n\n```python\n{_code(record, kind, names)}```\n",
        _table(
            "Training",
            [
                ("game", record.game),
                ("data", ": ".join(filter(None, (record.data, ", ".join(record.environments))))),
                ("rewards", record.rewards),
                ("trainer", record.trainer),
                ("rounds of this model", f"{record.rounds} of {record.max_rounds}"),
                ("mean reward, first rounds", _shown(record.first_reward)),
                ("mean reward, last rounds", _shown(record.last_reward)),
                ("groups of other peers trained on", f"{record.external:,}"),
                ("other peers that they came from", str(record.authors)),
                ("peer", f"{record.peer} {record.peer_id}".strip()),
            ],
        ),
        _evaluations(record),
    ]
    if record.options:
        options = yaml.safe_dump(dict(record.options), sort_keys=False, allow_unicode=True)
        parts.append(f"The trainer's options:\n\n```yaml\n{options}```\n")
    return "\n".join(part for part in parts if part)


def _kind(names: list[str]) -> str:
    if "adapter_config.json" in names:
        return "peft"
    if "config.json" in names:
        return "transformers"
    return "policy" if "policy.json" in names else "modules"


def _front_matter(record: ExportRecord, kind: str) -> str:
    from huggingface_hub import EvalResult, ModelCardData

    language_model = kind in ("transformers", "peft")
    found = record.evaluation
    results = []
    if found is not None:
        task = "text-generation" if language_model else "reinforcement-learning"
        shared: dict[str, Any] = {
            "task_type": task,
            "dataset_type": "swarmgame",
            "dataset_name": f"{record.game}, held-out questions",
        }
        results.append(
            EvalResult(**shared, metric_type="mean_reward", metric_name="mean reward", metric_value=found.reward)
        )
        if found.passed is not None:
            results.append(
                EvalResult(**shared, metric_type="pass", metric_name="questions passed", metric_value=found.passed)
            )
    relation: dict[str, Any] = (
        {"base_model_relation": "adapter" if kind == "peft" else "finetune"} if record.base_on_hub else {}
    )
    data = ModelCardData(
        base_model=record.base_on_hub or None,
        library_name={"transformers": "transformers", "peft": "peft"}.get(kind, "pytorch"),
        pipeline_tag="text-generation" if language_model else "reinforcement-learning",
        tags=[*TAGS, record.trainer.rpartition(":")[2].lower()],
        model_name=record.game,
        eval_results=results or None,
        **relation,
    )
    return f"{data.to_yaml()}\n"


def _adapters(kind: str) -> str:
    return "This folder holds low-rank adapters; they are loaded over the base model." if kind == "peft" else ""


def _code(record: ExportRecord, kind: str, names: list[str]) -> str:
    code = _CODE[kind]
    if kind == "peft":
        beside = record.base.startswith(("builtin://", "pypi://"))
        local = f"{PLACE}/base" if beside else record.base.removeprefix("file://")
        return code.replace("{base}", record.base_on_hub or local)
    if kind == "modules":
        return code.replace("{file}", next((name for name in names if name.endswith(".safetensors")), ""))
    return code


def _evaluations(record: ExportRecord) -> str:
    if not record.evaluations:
        return "## Evaluation\n\nThe game had no held-out evaluation (`spec.game.evaluation`).\n"
    best = max(record.evaluations, key=lambda each: (each.reward, -each.rounds))
    shown = {each.rounds: each for each in (record.evaluations[0], best, record.evaluations[-1])}
    rows = [("before training", _scores(record.untrained))] if record.untrained is not None else []
    for rounds, each in sorted(shown.items()):
        notes = [name for name, of in (("best so far", best), ("this model", record.evaluation)) if of is each]
        rows.append((f"after {rounds} rounds" + (f" ({', '.join(notes)})" if notes else ""), _scores(each)))
    return _table("Evaluation on held-out questions, mean reward", rows)


def _scores(found: EvaluationRecord) -> str:
    error = "" if found.error is None else f" ± {found.error:.3f}"
    passed = "" if found.passed is None else f", {found.passed:.1%} of the questions passed"
    by_environment = "; ".join(f"{name} {value:.3f}" for name, value in found.environments.items())
    return f"{found.reward:.3f}{error}{passed}" + (f" ({by_environment})" if by_environment else "")


def _table(title: str, rows: list[tuple[str, str]]) -> str:
    lines = [f"| {name} | {value.replace('|', '/')} |" for name, value in rows if value]
    return "\n".join((f"## {title}\n", "| | |", "|---|---|", *lines, ""))


def _shown(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"
