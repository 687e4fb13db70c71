"""Generation on a CUDA device, against transformers' own `generate`, on one model in one process.

The model has the shape of Qwen2.5-0.5B (494 M parameters, a vocabulary of 151,936) with random weights in bfloat16.
EOS is forbidden, so that all arms do the same work; `ours` also returns the log-probability of every token. `usual` is
9 prompts × 8 completions × 256 tokens, `wide` 64 × 8 × 128; `num_return_sequences` is one call of `generate`. `stream`
is one completion of 2,048 tokens, and `uneven` nano-vllm's workload (256 prompts of 100 to 1,024 tokens, outputs of
100 to 1,024); both have only the arm `ours`. A step is the time of the call, prompts included, divided by the tokens
of its longest completion. Run as `python benchmarks/generation_cuda.py` on a machine with a CUDA device; `--smoke`
uses a tiny model on any device, and writes no file.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import harness
import torch
from generation import by_transformers, timed
from transformers import Qwen2Config, Qwen2ForCausalLM, logging

from swarmgame.inference.continuous_batching import EngineSampler
from swarmgame.inference.sampler import SamplingParams

EOS, PAD = 151_645, 151_643


@dataclass(frozen=True)
class Work:
    """Prompts, completions of each, tokens of each; `uneven` draws lengths of both from 100 to `new_tokens`."""

    prompts: int
    completions: int
    new_tokens: int
    compared: bool = False
    uneven: bool = False
    claims: tuple[tuple[str, str, float], ...] = ()
    """Names of figures with a bound: at_most or at_least."""


WORKS = {
    "usual": Work(9, 8, 256, compared=True, claims=(("milliseconds_per_step", "at_most", 0.9),)),
    "wide": Work(64, 8, 128, compared=True, claims=(("tokens_per_second", "at_least", 250_000),)),
    "stream": Work(1, 1, 2048, claims=(("tokens_per_second", "at_least", 700),)),
    "uneven": Work(256, 1, 1024, uneven=True, claims=(("tokens_per_second", "at_least", 40_000),)),
}
SMOKE = {"usual": Work(3, 4, 20, compared=True), "uneven": Work(5, 1, 110, uneven=True)}


def half_billion(device: str) -> Any:
    """Make the model on its device."""
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=151_936,
        hidden_size=896,
        intermediate_size=4864,
        num_hidden_layers=24,
        num_attention_heads=14,
        num_key_value_heads=2,
        max_position_embeddings=4096,
        bos_token_id=None,
        eos_token_id=EOS,
        pad_token_id=PAD,
        tie_word_embeddings=True,
    )
    with torch.device(device):
        return Qwen2ForCausalLM(config).to(torch.bfloat16).eval()


def arms(model: Any, work: Work) -> dict[str, Callable[[], float]]:
    random = torch.Generator().manual_seed(1)

    def lengths() -> list[int]:
        return torch.randint(100, work.new_tokens + 1, (work.prompts,), generator=random).tolist()

    prompt_lengths = lengths() if work.uneven else [64 + 4 * (index % 8) for index in range(work.prompts)]
    budgets = lengths() if work.uneven else [work.new_tokens] * work.prompts
    batch = [
        torch.randint(0, model.config.vocab_size - 10, (length,), generator=random).tolist()
        for length in prompt_lengths
    ]
    params = SamplingParams(work.new_tokens, min_new_tokens=work.new_tokens)
    engine, eos, pad = EngineSampler(model, (model.config.eos_token_id,), 0), model.config.eos_token_id, 0

    def ours() -> None:
        sampled = engine.sample(batch, work.completions, params, 2, budgets=budgets)
        assert [len(group[0].token_ids) for group in sampled] == budgets

    for _ in range(2):  # compiles kernels, then captures graphs
        ours()
    transformers = by_transformers(model, batch, work.completions, params, (eos,), pad) if work.compared else {}
    transformers.pop("sequential", None)
    return {name: timed(call) for name, call in (transformers | {"ours": ours}).items()}


def measure(model: Any, works: dict[str, Work], repeats: int) -> dict[str, Any]:
    """Return figures and claims of all works."""
    figures: dict[str, Any] = {}
    claims = []
    for name, work in works.items():
        samples = harness.interleave(arms(model, work), repeats=repeats, warmups=1)
        seconds = {arm: harness.summary(values) for arm, values in samples.items()}
        ours = seconds["ours"]["median"]
        tokens = work.prompts * work.completions * work.new_tokens
        if work.uneven:
            random = torch.Generator().manual_seed(1)
            drawn = [torch.randint(100, work.new_tokens + 1, (work.prompts,), generator=random) for _ in range(2)]
            tokens = int(drawn[1].sum())
        figures[name] = {
            "rows": work.prompts * work.completions,
            "new_tokens": work.new_tokens,
            "seconds": seconds,
            "ratios": {arm: round(found["median"] / ours, 2) for arm, found in seconds.items() if arm != "ours"},
            "tokens_per_second": round(tokens / ours),
            "milliseconds_per_step": round(1000 * ours / work.new_tokens, 3),
        }
        for figure, bound, value in work.claims:
            claims.append(harness.claim(f"{name}: {figure.replace('_', ' ')}", figures[name][figure], **{bound: value}))
        torch.cuda.empty_cache()
    parameters = sum(parameter.numel() for parameter in model.parameters())
    shape = {
        "parameters": parameters,
        "vocabulary": model.config.vocab_size,
        "dtype": str(model.dtype).removeprefix("torch."),
    }
    return {"claims": claims, "shape": shape, **figures}


def small(device: str) -> Any:
    """Return a tiny model of the same architecture."""
    torch.manual_seed(0)
    sizes = {
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
    }
    config = Qwen2Config(
        vocab_size=512, tie_word_embeddings=True, bos_token_id=None, eos_token_id=1, pad_token_id=0, **sizes
    )
    return Qwen2ForCausalLM(config).to(device)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--smoke", action="store_true", help="a tiny model and one repeat, nothing written")
    parser.add_argument("--repeats", type=int, default=3)
    given = parser.parse_args()
    logging.set_verbosity_error()
    device = "cuda:0" if torch.cuda.is_available() else "cpu"
    began = harness.machine() | {"device": torch.cuda.get_device_name(0) if device != "cpu" else "cpu"}
    model = small(device).eval() if given.smoke else half_billion(device)
    body = measure(model, SMOKE if given.smoke else WORKS, 1 if given.smoke else given.repeats)
    harness.publish("generation_cuda", body, began=began, smoke=given.smoke)


if __name__ == "__main__":
    main()
