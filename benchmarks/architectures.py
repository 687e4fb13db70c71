"""Every causal architecture of transformers that can be made small: how it is sampled and trained, or why it is not.

Each entry of `architectures.yaml` becomes a random model of some ten thousand parameters, saved and loaded like a
user's folder. The check at load (`trainer.grpo.parity`) chooses the decoder, or refuses the model. What it accepts is
measured independently: completions of ragged prompts, their log-probabilities, and the gradient of training, each
against rows alone, in one pass without padding or cache. Writes `results/architectures.json` and
`docs/reference/architectures.md`.

    python benchmarks/architectures.py              every architecture, and what the check costs, about five minutes
    python benchmarks/architectures.py --check      what the check costs, put into the last results
    python benchmarks/architectures.py mistral opt  some, and writes nothing; with --update into the last results
"""

from __future__ import annotations

import argparse
import logging
import os
import tempfile
import textwrap
import time
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
import yaml
from harness import claim, machine, publish, result
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM
from transformers.utils import logging as transformers_logging

from swarmgame.errors import InvalidManifest
from swarmgame.game.components import ComponentContext
from swarmgame.inference.arguments import Arguments
from swarmgame.inference.decoding import Decoding
from swarmgame.inference.engines import make_sampler
from swarmgame.inference.sampler import Sampler, SamplingParams
from swarmgame.models.tokenizer import character_tokenizer
from swarmgame.trainer.grpo.config import GRPOConfig
from swarmgame.trainer.grpo.parity import ensure_parity
from swarmgame.trainer.grpo.policy import Policy

ENTRIES = Path(__file__).parent / "architectures.yaml"
PAGE = Path(__file__).parents[1] / "docs" / "reference" / "architectures.md"
LARGEST = 20_000_000
"""Parameters of a model that is still small enough to be made here."""
PROMPTS = ((5, 6, 7, 8, 9, 10, 11, 30, 31, 32, 33, 34), (13, 14), (12, 14, 9, 33, 20), (5, 6, 7))
TEMPERATURE = 0.8
BOUND = 1e-3
"""Largest difference that is rounding: of log-probabilities in nats, of gradients as a share of the largest."""
DECODERS = {
    Decoding.FUSED: "fast decoder",
    Decoding.CACHED: "the model's forward",
    Decoding.PLAIN_MASK: "the model's forward, a mask made at each step",
    Decoding.UNPADDED: "the model's forward, prompts of one length at a time",
    Decoding.RECOMPUTED: "the model's forward, without a cache",
}


def entries() -> Mapping[str, Any]:
    """Return the entries of the file: configurations by name."""
    return _file()["architectures"]


def make(name: str) -> Any:
    """Return a random model of one entry.

    Raises:
        ValueError: it would be too large.
    """
    file = _file()
    entry = file["architectures"][name] or {}
    tokenizer = character_tokenizer()
    options = {
        "vocab_size": len(tokenizer),
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        **file["shape"],
        **({} if entry.get("dense") else file["sparse"]),
        **entry.get("with", {}),
    }
    for unwanted in entry.get("without", ()):
        options.pop(unwanted)
    if "inside" in entry:  # of several models, such as one of texts and one of images
        options = {entry["inside"]: options, "eos_token_id": tokenizer.eos_token_id, **entry.get("beside", {})}
    torch.manual_seed(7)
    config = type(AutoConfig.for_model(entry.get("type", name)))(**options)
    with torch.device("meta"):
        size = sum(parameter.numel() for parameter in AutoModelForCausalLM.from_config(config).parameters())
    if size > LARGEST:
        raise ValueError(f"{size:,} parameters: its configuration must be smaller")
    model = AutoModelForCausalLM.from_config(config).eval()
    torch.manual_seed(8)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() >= 2:
                parameter.normal_(0, 0.25)
    return model


def examine(name: str, **options: Any) -> dict[str, Any]:
    """Return what becomes of one entry: its decoder and shortcuts, or why it is refused, and the measured errors.

    Args:
        options: of `GRPOConfig`.
    """
    model = make(name)
    found: dict[str, Any] = {"class": type(model).__name__, "parameters": sum(p.numel() for p in model.parameters())}
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        character_tokenizer().save_pretrained(folder)
        config = GRPOConfig(generations=4, max_new_tokens=24, temperature=TEMPERATURE, **options)
        try:
            policy = Policy(config, ComponentContext(model_uri=f"file://{folder}", cache=Path(folder)))
            sampler = make_sampler(policy, "eager", longest=policy.longest_prompt + config.max_new_tokens)
            parity = ensure_parity(policy, sampler)
        except InvalidManifest as error:
            return found | {"refused": str(error).partition("expected ")[2].replace(folder, "")}
    assert parity.decoding is not None
    found |= {"decoder": parity.decoding.name.lower(), "shares_prompts": parity.share_prompts}
    return found | {"packed": parity.packed, "left_out": list(parity.left_out), **measure(policy, sampler)}


def measure(policy: Policy, sampler: Sampler) -> dict[str, float]:
    """Return the largest errors of sampler and training, against rows alone."""
    groups = sampler.sample(PROMPTS, 4, SamplingParams(24, temperature=TEMPERATURE), 3)
    rows = [(prompt, one.token_ids) for prompt, group in zip(PROMPTS, groups, strict=True) for one in group]
    right = [policy.score_alone(*row) for row in rows]
    sampled = [one.logprobs for group in groups for one in group]
    prompts, completions = [prompt for prompt, _ in rows], [completion for _, completion in rows]
    with policy.in_training(0):
        logprobs, _, mask = policy.score(prompts, completions)
        weights = torch.randn(logprobs.shape, generator=torch.Generator().manual_seed(1)) * mask
        (logprobs * weights).sum().backward()
    trained = [row[: len(ids)] for row, ids in zip(logprobs.tolist(), completions, strict=True)]
    gradients = {name: each.grad.clone() for name, each in policy.parameters.items() if each.grad is not None}
    policy.trained.zero_grad()
    arguments = Arguments(policy.trained).uncached()
    for row, weight in zip(rows, weights, strict=True):
        ids = torch.tensor([[*row[0], *row[1]]])
        alone = (
            policy.trained(input_ids=ids, **arguments).logits[0, len(row[0]) - 1 : -1].float() / TEMPERATURE
        ).log_softmax(-1)
        (alone.gather(1, ids[0, len(row[0]) :, None])[:, 0] * weight[: len(row[1])]).sum().backward()
    expected = {name: each.grad for name, each in policy.parameters.items() if each.grad is not None}
    scale = max(float(each.abs().max()) for each in expected.values())
    gradient = max(
        float((gradients.get(name, torch.zeros_like(each)) - each).abs().max()) for name, each in expected.items()
    )
    return {
        "sampler_error": _furthest(sampled, right),
        "training_error": _furthest(trained, right),
        "gradient_error": gradient / scale,
    }


def verdict(found: Mapping[str, Any]) -> str:
    """Return what an entry is in one word: fast, right, refused or wrong."""
    if "refused" in found:
        return "refused"
    errors = [found[name] for name in ("sampler_error", "training_error", "gradient_error")]
    if not all(error <= BOUND for error in errors):
        return "wrong"
    return "fast" if found["decoder"] == "fused" else "right"


def page(found: Mapping[str, Mapping[str, Any]]) -> str:
    """Return docs/reference/architectures.md."""
    counts = Counter(map(verdict, found.values()))
    kinds = {each["class"] for each in found.values()}
    lines = [
        "# Architectures",
        "",
        "This page is made by `python benchmarks/architectures.py` from random models of some ten thousand parameters.",
        "Every model is also checked when a peer loads it, on its own weights; see",
        "[decision 0048](../decisions/0048-parity-at-load.md).",
        "",
        f"{len(found)} configurations of {len(kinds)} model classes: {counts['fast']} with the fast decoder, "
        f"{counts['right']} right with the model's own forward,",
        f"{counts['refused']} refused by name, {counts['wrong']} wrong.",
        "",
        "Shared prompts: whether training reads a prompt once for all its completions. Error: largest difference of a",
        "log-probability, in nats, between a row alone and the sampler or training.",
        "",
        "| configuration | class | decode steps | shared prompts | error |",
        "|---|---|---|---|---|",
    ]
    for name, each in sorted(found.items()):
        if "refused" in each:
            lines.append(f"| {name} | {each['class']} | refused | | |")
            continue
        error = max(each["sampler_error"], each["training_error"])
        shared = "yes" if each["shares_prompts"] else "no"
        lines.append(
            f"| {name} | {each['class']} | {DECODERS[Decoding[each['decoder'].upper()]]} | {shared} | {error:.0e} |"
        )
    refused = {name: each["refused"] for name, each in sorted(found.items()) if "refused" in each}
    if refused:
        lines += ["", "Refused:", "", *(f"- {name}: {_wrapped(reason)}" for name, reason in refused.items())]
    return "\n".join(lines) + "\n"


def check_times() -> dict[str, Any]:
    """Return the processor seconds of the check at load, on one thread: of the builtin model, and of random weights in
    the shape of SmolLM2-135M in float32.
    """
    torch.manual_seed(7)
    shape = LlamaConfig(
        vocab_size=49_152,
        hidden_size=576,
        intermediate_size=1_536,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        max_position_embeddings=8_192,
        tie_word_embeddings=True,
    )
    with tempfile.TemporaryDirectory() as folder:
        LlamaForCausalLM(shape).save_pretrained(folder)
        character_tokenizer().save_pretrained(folder)
        return {
            "date": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
            "load": round(os.getloadavg()[0], 2),
            "builtin": _check_seconds("builtin://tiny?accuracy=0", Path(folder)),
            "135 million parameters": _check_seconds(f"file://{folder}", Path(folder)),
        }


def _check_seconds(uri: str, cache: Path) -> float:
    """Return the longest of five checks: the first one of a process, as at load, takes more than those after it."""
    policy = Policy(GRPOConfig(), ComponentContext(model_uri=uri, cache=cache / "cache"))
    samples = []
    for _ in range(5):
        sampler = make_sampler(policy, "eager", longest=policy.longest_prompt + policy.config.max_new_tokens)
        began = time.process_time()
        ensure_parity(policy, sampler)
        samples.append(time.process_time() - began)
    return round(max(samples), 3)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", help="entries of architectures.yaml; none: all, and write the results")
    parser.add_argument("--page", action="store_true", help="write the page from the last results, and run nothing")
    parser.add_argument("--update", action="store_true", help="put the entries that are named into the last results")
    parser.add_argument("--check", action="store_true", help="measure the check at load, and keep the architectures")
    arguments = parser.parse_args()
    last = result("architectures")
    if arguments.page:
        assert last is not None, "there are no results yet"
        PAGE.write_text(page(last["architectures"]), encoding="utf-8")
        return
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    torch.set_num_threads(1)
    began, found = machine(), {}
    for name in arguments.names or ([] if arguments.check else entries()):
        found[name] = examine(name)
        print(f"{name}: {verdict(found[name])} {found[name]}", flush=True)
    if arguments.names and not arguments.update:
        return
    body: dict[str, Any] = {}
    if arguments.names or arguments.check:
        assert last is not None, "there are no results yet"
        body["updated"] = sorted(found) or last.get("updated", [])
        found = {**last["architectures"], **found}
    seconds = last["check_seconds"] if last is not None and arguments.names else check_times()
    counts = Counter(map(verdict, found.values()))
    claims = [
        claim("model classes that were tried", len({each["class"] for each in found.values()}), at_least=85),
        claim("configurations that are sampled or trained wrongly", counts["wrong"], at_most=0),
        claim("processor seconds of the check at load, builtin model", seconds["builtin"], at_most=1.0),
        claim(
            "processor seconds of the check at load, 135 million parameters",
            seconds["135 million parameters"],
            at_most=5.0,
        ),
    ]
    body |= {"claims": claims, "counts": dict(counts), "check_seconds": seconds, "architectures": found}
    publish("architectures", body, began=began)
    PAGE.write_text(page(found), encoding="utf-8")


def _file() -> Mapping[str, Any]:
    return yaml.safe_load(ENTRIES.read_text(encoding="utf-8"))


def _furthest(left: Sequence[Sequence[float]], right: Sequence[Sequence[float]]) -> float:
    return max(abs(a - b) for one, other in zip(left, right, strict=True) for a, b in zip(one, other, strict=True))


def _wrapped(text: str) -> str:
    return "\n  ".join(textwrap.wrap(text, 100))


if __name__ == "__main__":
    main()
