"""Generation on a CUDA device: G completions of each prompt, four ways, on one model in one process.

Arms: `sequential` calls transformers' `generate` G times on the whole batch of prompts, as GenRL does; `num_return_sequences` calls it once;
`eager` is our sampler operation by operation; `cudagraph` replays each step as one graph. The model has the shape of Qwen2.5-0.5B (494 M parameters,
a vocabulary of 151,936) with random weights in bfloat16: what is said does not matter, how long it takes does. EOS is forbidden, so that all arms do
the same work; ours besides keep the log-probability of every token. `wide` has 512 rows, and leaves `sequential` out.
Run as `python benchmarks/generation_cuda.py` on a machine with a CUDA device; `--smoke` is quick and writes nothing.
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

from swarmgame.inference.eager import EagerSampler
from swarmgame.inference.engine import EngineSampler
from swarmgame.inference.sampler import SamplingParams

EOS, PAD = 151_645, 151_643


@dataclass(frozen=True)
class Work:
    prompts: int
    completions: int
    new_tokens: int
    sequential: bool


WORKS = {"usual": Work(8, 8, 64, sequential=True), "wide": Work(32, 16, 128, sequential=False)}


def half_billion(device: str) -> Any:
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
    return Qwen2ForCausalLM(config).to(device, torch.bfloat16).eval()


def arms(model: Any, work: Work) -> dict[str, Callable[[], float]]:
    random = torch.Generator().manual_seed(1)
    asked = [torch.randint(0, 100_000, (64 + 4 * (index % 8),), generator=random).tolist() for index in range(work.prompts)]
    params = SamplingParams(work.new_tokens, min_new_tokens=work.new_tokens)
    eager, graphs = EagerSampler(model, (EOS,), PAD), EngineSampler(model, (EOS,), PAD)
    every = by_transformers(model, asked, work.completions, params, (EOS,), PAD) | {
        "eager": lambda: eager.sample(asked, work.completions, params, 2),
        "cudagraph": lambda: graphs.sample(asked, work.completions, params, 2),
    }
    return {name: timed(call) for name, call in every.items() if work.sequential or name != "sequential"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--smoke", action="store_true", help="one repeat, nothing written")
    parser.add_argument("--repeats", type=int, default=5)
    given = parser.parse_args()
    logging.set_verbosity_error()
    began = harness.machine() | {"device": torch.cuda.get_device_name(0)}
    model = half_billion("cuda:0")
    figures: dict[str, Any] = {}
    claims = []
    for name, work in WORKS.items():
        samples = harness.interleave(arms(model, work), repeats=1 if given.smoke else given.repeats, warmups=1)
        seconds = {arm: harness.summary(values) for arm, values in samples.items()}
        ours = seconds["cudagraph"]["median"]
        ratios = {arm: round(found["median"] / ours, 2) for arm, found in seconds.items() if arm != "cudagraph"}
        tokens = work.prompts * work.completions * work.new_tokens
        figures[name] = {
            "rows": work.prompts * work.completions,
            "new_tokens": work.new_tokens,
            "seconds": seconds,
            "ratios": ratios,
            "tokens_per_second": round(tokens / ours),
            "milliseconds_per_step": round(1000 * ours / work.new_tokens, 3),
        }
        if work.sequential:
            claims.append(
                harness.claim(f"{name}: times as fast as {work.completions} sequential calls", ratios["sequential"], at_least=9.0)
            )
        claims.append(harness.claim(f"{name}: times as fast as num_return_sequences", ratios["num_return_sequences"], at_least=2.0))
    parameters = sum(parameter.numel() for parameter in model.parameters())
    shape = {"parameters": parameters, "vocabulary": model.config.vocab_size, "dtype": "bfloat16"}
    harness.publish("generation_cuda", {"claims": claims, "shape": shape, **figures}, began=began, smoke=given.smoke)


if __name__ == "__main__":
    main()
