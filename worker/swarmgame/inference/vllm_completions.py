"""vLLM's completions endpoint: the request, and the check of an answer before it is used.

`vllm_client` sends them; its docstring lists the versions of vLLM that were read.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from swarmgame.errors import BadData
from swarmgame.inference.sampler import Sampled, SamplingParams

SMALL_BYTES = 1 << 20
BYTES_PER_TOKEN = 512
"""Most bytes of the answer for one token: its id, its log-probability, its text."""
BYTES_PER_PROMPT_TOKEN = 16
LEAST_LOGPROB = -1_000.0
LARGEST_LOGPROB = 1e-3
"""Rounding of fp32 may exceed 0 slightly; a sampled token is never as unlikely as `LEAST_LOGPROB`."""


class ServerUnavailable(Exception):
    """The server did not answer this time: it is away, starting, too slow, or gave the request up."""


class StaleWeights(Exception):
    """The server does not have the requested weights: it was started again, or given others."""


@dataclass(frozen=True, slots=True)
class PromptRequest:
    """One prompt.

    Args:
        prompt: ids.
        n: completions.
        budget: tokens of each, EOS included.
        seed: 0 ≤ seed < 2^62.
    """

    prompt: tuple[int, ...]
    n: int
    budget: int
    seed: int

    @property
    def largest_answer(self) -> int:
        return SMALL_BYTES + self.n * (BYTES_PER_TOKEN * self.budget + BYTES_PER_PROMPT_TOKEN * len(self.prompt))


class Completions:
    """Requests to the completions endpoint of one server, and their checked answers.

    Args:
        url: of the server, for messages.
        eos_token_ids: ids that end a completion, whatever the server's model has.
        vocabulary: ids are below it.
    """

    def __init__(self, url: str, eos_token_ids: Sequence[int], vocabulary: int) -> None:
        self._url = url
        self._eos = frozenset(eos_token_ids)
        self._vocabulary = vocabulary

    def body(self, model: str, request: PromptRequest, params: SamplingParams) -> dict[str, Any]:
        """Return the body of a request, with a value for every setting that has a default on the server."""
        return {
            "model": model,
            "prompt": list(request.prompt),
            "n": 1 if params.greedy else request.n,
            "seed": request.seed,
            "max_tokens": request.budget,
            "min_tokens": min(params.min_new_tokens, request.budget),
            "temperature": 0.0 if params.greedy else params.temperature,
            "top_p": 1.0 if params.greedy else params.top_p,
            "top_k": 0 if params.greedy else params.top_k,
            "min_p": 0.0,
            "repetition_penalty": 1.0,
            "presence_penalty": 0.0,
            "frequency_penalty": 0.0,
            "watermarking": False,
            # Only our own ids end a completion; the model's own configuration may know fewer or more of them.
            "ignore_eos": True,
            "stop_token_ids": sorted(self._eos),
            "logprobs": 0,
            "return_token_ids": True,
            "return_tokens_as_token_ids": True,
            "return_weight_versions": True,
            # Without it, vLLM hides the string in the text only: the ids have it in either case.
            **({"stop": list(params.stop), "include_stop_str_in_output": True} if params.stop else {}),
        }

    def parse(
        self, answer: Any, model: str, request: PromptRequest, weights: str, params: SamplingParams
    ) -> list[Sampled]:
        choices = answer.get("choices") if isinstance(answer, Mapping) else None
        expected = 1 if params.greedy else request.n
        if (
            not isinstance(choices, list)
            or len(choices) != expected
            or not all(isinstance(choice, Mapping) for choice in choices)
        ):
            count = f"{len(choices)} choices" if isinstance(choices, list) else "no list of choices"
            raise invalid_answer(self._url, f"{count} for {expected} completions")
        if answer.get("model") != model:
            raise StaleWeights(f"the answer is of model {answer.get('model')!r}, expected {model!r}")
        if sorted(choice.get("index", -1) for choice in choices) != list(range(expected)):
            raise invalid_answer(self._url, "choices that are not numbered from 0")
        labels = {
            span.get("version")
            for choice in choices
            for span in choice.get("weight_versions") or ()
            if isinstance(span, Mapping)
        }
        if weights and labels - {weights}:
            raise StaleWeights(f"the answer is of the weights {sorted(map(str, labels))}, expected {weights}")
        ordered = sorted(choices, key=lambda choice: choice["index"])
        found = [self._parse_choice(choice, request, params.stop) for choice in ordered]
        return found * request.n if params.greedy else found

    def _parse_choice(self, choice: Mapping[str, Any], request: PromptRequest, stop: Sequence[str]) -> Sampled:
        reason = choice.get("finish_reason")
        if reason in ("abort", "error"):
            raise ServerUnavailable(f"the server gave a request up ({reason})")
        ids, reported = choice.get("token_ids"), choice.get("logprobs")
        reported = reported if isinstance(reported, Mapping) else {}
        logprobs = reported.get("token_logprobs")
        if not isinstance(ids, list) or not isinstance(logprobs, list):
            raise invalid_answer(self._url, "a choice without token_ids or logprobs.token_logprobs")
        if choice.get("prompt_token_ids") not in (None, list(request.prompt)):
            raise invalid_answer(self._url, "another prompt than it was given")
        if not 1 <= len(ids) <= request.budget or len(logprobs) != len(ids):
            raise invalid_answer(
                self._url, f"{len(ids)} tokens and {len(logprobs)} log-probabilities for a budget of {request.budget}"
            )
        if not all(type(token) is int and 0 <= token < self._vocabulary for token in ids):
            raise invalid_answer(self._url, f"token ids outside the vocabulary of {self._vocabulary}")
        if any(name != f"token_id:{token}" for name, token in zip(reported.get("tokens") or (), ids, strict=False)):
            raise invalid_answer(self._url, "log-probabilities of other tokens than the ids")
        if not all(isinstance(value, int | float) and LEAST_LOGPROB <= value <= LARGEST_LOGPROB for value in logprobs):
            wrong = next(
                value
                for value in logprobs
                if not (isinstance(value, int | float) and LEAST_LOGPROB <= value <= LARGEST_LOGPROB)
            )
            raise invalid_answer(self._url, f"the log-probability {wrong!r} of a sampled token")
        stopped = ids[-1] in self._eos or (reason == "stop" and choice.get("stop_reason") in stop)
        if any(token in self._eos for token in ids[:-1]):
            raise invalid_answer(self._url, "tokens behind an end-of-sequence token")
        if not stopped and len(ids) < request.budget:
            raise invalid_answer(
                self._url,
                f"a completion of {len(ids)} tokens that neither ended nor used its budget of {request.budget} "
                "(is --max-model-len too small?)",
            )
        return Sampled(tuple(ids), tuple(min(float(value), 0.0) for value in logprobs), stopped)


def invalid_answer(url: str, content: str) -> BadData:
    """Return the error for an answer that vLLM's own server does not give."""
    return BadData(
        f"the server at {url} answered {content}; expected vLLM's own HTTP server, 0.22 or newer, of this peer's model"
    )
