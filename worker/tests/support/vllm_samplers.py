"""Samplers of tiny models over a stand-in of vLLM's server."""

from __future__ import annotations

import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

from swarmgame.game.ranks import OneRank
from swarmgame.inference.vllm import VllmSampler
from swarmgame.inference.vllm_client import VllmClient
from swarmgame.trainer.grpo.logprobs import completion_logprobs
from swarmgame_api.sampler import VllmOptions

PAD, EOS = 0, 1
PROMPTS = [[5, 6, 7, 8, 9, 10, 11], [3], [12, 4, 9], [5, 6, 7]]


def tiny(vocabulary=19, spread=0.4, seed=7):
    torch.manual_seed(seed)
    shape = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
    }
    ids = {"bos_token_id": None, "eos_token_id": EOS, "pad_token_id": PAD}
    return Qwen2ForCausalLM(Qwen2Config(vocab_size=vocabulary, initializer_range=spread, **shape, **ids)).eval()


def sampler_for(model, url, folder, *, eos=(EOS,), adapters=None, longest=64, ranks=None, **options):
    saved = adapters or model
    settings = VllmOptions(engine="vllm", url=url, **({"startup_seconds": 1, "timeout_seconds": 120} | options))

    def client(address):
        return VllmClient(
            address,
            eos_token_ids=eos,
            vocabulary=model.config.vocab_size,
            timeout_seconds=settings.timeout_seconds,
            api_key="key",
        )

    shared = {"adapters": adapters is not None, "folder": folder, "longest": longest, "ranks": ranks or OneRank()}
    return VllmSampler(settings, client, saved.save_pretrained, process=None, url=url, **shared)


def flat(groups):
    return [completion for group in groups for completion in group]


def scored(model, completions, prompts, temperature=1.0):
    return completion_logprobs(model, prompts, [c.token_ids for c in completions], temperature, with_entropy=False)[0]


def only(path, answer):
    """Return a fault that answers one path."""
    return lambda at, given: answer if at == path else given
