"""Generation of G completions per prompt in three ways, on one model in one process.

Arms: `sequential` calls `generate` G times on the batch of prompts, as GenRL does; `num_return_sequences` calls it
once and lets it read each prompt G times; `ours` is the eager sampler, which also returns the log-probability of every
token (the others would need another pass). Work: 8 prompts of 20 to 34 tokens, 8 completions each, 32 new tokens;
`fixed` forbids EOS, `free` ends completions after about 12 tokens. Run as `python benchmarks/generation.py`; `--smoke`
is quick and writes nothing.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import harness
import torch
from transformers import GenerationConfig, Qwen2Config, Qwen2ForCausalLM, logging

from swarmgame.inference.eager import EagerSampler
from swarmgame.inference.sampler import SamplingParams

PROMPT_LENGTHS = (20, 22, 24, 26, 28, 30, 32, 34)
COMPLETIONS, NEW_TOKENS = 8, 32
SMOKE_COMPLETIONS, SMOKE_NEW_TOKENS = 2, 4
VOCABULARY, PAD, EOS = 260, 256, 257
FREE_EOS = tuple(range(EOS - 20, EOS + 1))
"""Random weights give every id about the same probability, so 21 of 260 end a completion after about 12 tokens."""


def tiny_model() -> Qwen2ForCausalLM:
    """Return a Qwen2 decoder of 0.33 M parameters with random weights."""
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=VOCABULARY,
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        bos_token_id=None,
        eos_token_id=EOS,
        pad_token_id=PAD,
        tie_word_embeddings=True,
    )
    return Qwen2ForCausalLM(config).eval()


def prompts() -> list[list[int]]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(0, 200, (length,), generator=generator).tolist() for length in PROMPT_LENGTHS]


def by_transformers(
    model: Any, batch: list[list[int]], completions: int, params: SamplingParams, eos: Sequence[int], pad: int
) -> dict[str, Callable[[], Any]]:
    """Return the arms of transformers' `generate`: a call per completion, and one call for all."""
    width = max(map(len, batch))
    ids = torch.tensor([[pad] * (width - len(prompt)) + prompt for prompt in batch], device=model.device)
    mask = (ids != pad).long()

    def generate(sequences: int) -> None:
        settings = GenerationConfig(
            do_sample=True,
            temperature=1.0,
            top_k=0,
            num_return_sequences=sequences,
            max_new_tokens=params.max_new_tokens,
            min_new_tokens=params.min_new_tokens,
            pad_token_id=pad,
            eos_token_id=list(eos),
        )
        with torch.inference_mode():
            model.generate(ids, attention_mask=mask, generation_config=settings)

    return {
        "sequential": lambda: [generate(1) for _ in range(completions)],
        "num_return_sequences": lambda: generate(completions),
    }


def arms(
    model: Qwen2ForCausalLM,
    batch: list[list[int]],
    completions: int,
    params: SamplingParams,
    eos: tuple[int, ...],
) -> dict[str, Callable[[], float]]:
    sampler, seeds = (
        EagerSampler(model, eos, PAD),
        itertools.count(),
    )  # other lengths in each call, as the other arms have them
    ours = {"ours": lambda: sampler.sample(batch, completions, params, next(seeds))}
    return {
        name: timed(work)
        for name, work in (by_transformers(model, batch, completions, params, eos, PAD) | ours).items()
    }


def timed(work: Callable[[], Any]) -> Callable[[], float]:
    def measure() -> float:
        began = harness.now()
        work()
        return harness.now() - began

    return measure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--smoke", action="store_true", help="one repeat of little work, nothing written")
    parser.add_argument("--repeats", type=int, default=15)
    given = parser.parse_args()
    torch.set_num_threads(1)  # one core a peer, as a swarm on a laptop has it; all arms alike
    logging.set_verbosity_error()
    began = harness.machine()
    model, batch = tiny_model(), prompts()
    figures: dict[str, Any] = {}
    claims = []
    completions, new_tokens = (SMOKE_COMPLETIONS, SMOKE_NEW_TOKENS) if given.smoke else (COMPLETIONS, NEW_TOKENS)
    repeats, warmups = (1, 0) if given.smoke else (given.repeats, 2)
    for work, eos, minimum in (("fixed", (EOS,), new_tokens), ("free", FREE_EOS, 0)):
        params = SamplingParams(new_tokens, min_new_tokens=minimum)
        made = arms(model, batch, completions, params, eos)
        samples = harness.interleave(made, repeats=repeats, warmups=warmups)
        seconds = {name: harness.summary(values) for name, values in samples.items()}
        ours = seconds["ours"]["median"]
        ratios = {name: round(seconds[name]["median"] / ours, 2) for name in ("sequential", "num_return_sequences")}
        tokens = len(batch) * completions * new_tokens
        figures[work] = {"seconds": seconds, "ratios": ratios} | (
            {"tokens_per_second": round(tokens / ours)} if work == "fixed" else {}
        )
        claims.append(
            harness.claim(
                f"{work}: times as fast as {completions} sequential calls", ratios["sequential"], at_least=9.0
            )
        )
        claims.append(
            harness.claim(
                f"{work}: times as fast as num_return_sequences", ratios["num_return_sequences"], at_least=2.0
            )
        )
    shape = {
        "prompts": len(batch),
        "prompt_tokens": list(PROMPT_LENGTHS),
        "completions": completions,
        "new_tokens": new_tokens,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "threads": torch.get_num_threads(),
        "dtype": "float32",
    }
    harness.publish("generation", {"claims": claims, "shape": shape, **figures}, began=began, smoke=given.smoke)


if __name__ == "__main__":
    main()
