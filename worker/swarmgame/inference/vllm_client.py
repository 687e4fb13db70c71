"""vLLM's HTTP protocol: completions of token ids, and weights; answers are checked before they are used.

Read from vLLM 0.33.0 and compared with 0.22.1 and 0.30.0: `/v1/completions`, and with
VLLM_ALLOW_RUNTIME_LORA_UPDATING=1 `/v1/load_lora_adapter` and `/v1/unload_lora_adapter`, serve since 0.22 at least;
with VLLM_SERVER_DEV_MODE=1 so do `/collective_rpc` and `/reset_prefix_cache`, and since 0.30 at the latest
`/update_weight_version` and `/weight_info`. Quirks that shape this module: all prompts of one request share a seed, so
each prompt is a request of its own; the n completions of a request have the seeds s, s+1, …; a greedy request takes
n=1 alone; a stop token is in `token_ids`; -inf and NaN arrive as -9999; a budget that does not fit the longest
sequence is lowered silently. Run against vLLM 0.32.0 on a CPU, whose log-probabilities were within 1.4e-5 of a full
forward in fp32. Retries, versions and processes are in `vllm.py`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import aiohttp

from swarmgame import bounded_json
from swarmgame.errors import InvalidManifest
from swarmgame.inference.sampler import Sampled, SamplingParams
from swarmgame.inference.vllm_completions import (
    SMALL_BYTES,
    Completions,
    PromptRequest,
    ServerUnavailable,
    StaleWeights,
    invalid_answer,
)
from swarmgame.inference.vllm_process import PATH

CONNECT_SECONDS = 10.0
CONNECTIONS = 256
"""Requests under way at once; the server has a queue of its own, but every connection costs a file on both sides."""
EXCERPT = 300
RELOADING = "reloading"
"""Label of weights that are being replaced."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class ServedModel:
    """The model that a server was started with: its name there, where it comes from, and its longest sequence."""

    name: str
    root: str
    max_model_len: int


class VllmClient:
    """Requests of one server; synchronous, from any thread.

    Args:
        url: without a path at the end.
        eos_token_ids: ids that end a completion, whatever the server's model has.
        vocabulary: ids are below it.
        timeout_seconds: of one request.
        api_key: sent as a bearer token; empty: none.
    """

    def __init__(
        self, url: str, *, eos_token_ids: Sequence[int], vocabulary: int, timeout_seconds: float, api_key: str = ""
    ) -> None:
        self.url = url.rstrip("/")
        self._completions = Completions(self.url, eos_token_ids, vocabulary)
        self._timeout = aiohttp.ClientTimeout(total=timeout_seconds, sock_connect=CONNECT_SECONDS)
        self._timeout_seconds = timeout_seconds
        self._headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}

    # ── completions
    def complete(
        self, model: str, requests: Sequence[PromptRequest], params: SamplingParams, *, weights: str = ""
    ) -> list[list[Sampled] | ServerUnavailable | StaleWeights]:
        """Sample from the model with this name, all requests at once; for a request that may be repeated, return the
        reason instead.

        Args:
            weights: label that the weights must have, where the server names it (since 0.33.0); empty: any.

        Raises:
            BadData: the server gave an invalid answer.
            InvalidManifest: the server refused the request.
        """

        async def one(
            session: aiohttp.ClientSession, request: PromptRequest
        ) -> list[Sampled] | ServerUnavailable | StaleWeights:
            try:
                answer = await self._post(
                    session,
                    "/v1/completions",
                    self._completions.body(model, request, params),
                    limit=request.largest_answer,
                )
                return self._completions.parse(answer, model, request, weights, params)
            except (ServerUnavailable, StaleWeights) as problem:
                return problem

        async def all_requests(
            session: aiohttp.ClientSession,
        ) -> list[list[Sampled] | ServerUnavailable | StaleWeights]:
            tasks = [asyncio.create_task(one(session, request)) for request in requests]
            try:
                return list(await asyncio.gather(*tasks))
            finally:
                for task in tasks:
                    task.cancel()

        return self._run(all_requests)

    def scales_logprobs(self, model: str, prompt: Sequence[int]) -> bool:
        """Whether log-probabilities are those at the sampling temperature: the likeliest token's must rise as the
        temperature falls.
        """
        request = PromptRequest(tuple(prompt), 1, 1, 0)

        async def best(session: aiohttp.ClientSession, temperature: float) -> float:
            body = {**self._completions.body(model, request, SamplingParams(1, temperature)), "logprobs": 1}
            answer = await self._post(session, "/v1/completions", body)
            try:
                return max(map(float, answer["choices"][0]["logprobs"]["top_logprobs"][0].values()))
            except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
                raise invalid_answer(self.url, "no top_logprobs") from error

        async def compare(session: aiohttp.ClientSession) -> bool:
            warm, cold = await best(session, 1.0), await best(session, 0.5)
            # Next to certainty there is nothing to see.
            return cold > warm + 1e-6 or warm > -1e-3

        return self._run(compare)

    # ── the model and its weights
    def version(self) -> str:
        """Return the server's version; `unknown` where it reports none."""
        answer = self._get("/version")
        return str(answer.get("version", "unknown")) if isinstance(answer, Mapping) else "unknown"

    def served(self) -> tuple[ServedModel, frozenset[str]]:
        """Return the base model, and the names of the adapters that are loaded."""
        answer = self._get("/v1/models")
        cards = answer.get("data") if isinstance(answer, Mapping) else None
        if not isinstance(cards, list) or not all(
            isinstance(card, Mapping) and isinstance(card.get("id"), str) for card in cards
        ):
            raise invalid_answer(self.url, "no list of models")
        bases = [card for card in cards if not card.get("parent")]
        if not bases:
            raise invalid_answer(self.url, "no model at all")
        longest = bases[0].get("max_model_len")
        model = ServedModel(bases[0]["id"], str(bases[0].get("root") or ""), longest if isinstance(longest, int) else 0)
        return model, frozenset(card["id"] for card in cards if card.get("parent"))

    def weight_version(self) -> str:
        """Return the label of the weights, as `reload` gave it; `default` for those that the server began with."""
        answer = self._get("/weight_info", needs="vLLM 0.30.0 or newer, with VLLM_SERVER_DEV_MODE=1 in its environment")
        return str(answer.get("weight_version", "")) if isinstance(answer, Mapping) else ""

    def reload(self, folder: Path, label: str) -> None:
        """Load all weights from a folder of safetensors, drop what was cached from the old ones, and label them.

        A reload that fails leaves vLLM without usable weights (0.32.0: they stay on the meta device), so the old label
        goes first.
        """
        needs = "vLLM 0.30.0 or newer, with VLLM_SERVER_DEV_MODE=1 in its environment"
        call = {"method": "reload_weights", "kwargs": {"weights_path": str(folder)}, "timeout": self._timeout_seconds}
        self._change("/update_weight_version", {"new_version": RELOADING}, needs=needs)
        self._change("/collective_rpc", call, needs=needs)
        answer = self._change("/reset_prefix_cache", {}, needs=needs)
        if isinstance(answer, Mapping) and answer.get("success") is False:
            raise ServerUnavailable(
                "its prefix cache is in use by other requests and holds what the old weights computed"
            )
        self._change("/update_weight_version", {"new_version": label}, needs=needs)

    def load_adapter(self, folder: Path, label: str) -> None:
        """Load an adapter under a name of its own."""
        needs = "--enable-lora, and VLLM_ALLOW_RUNTIME_LORA_UPDATING=1 in its environment"
        body = {"lora_name": label, "lora_path": str(folder)}
        self._change("/v1/load_lora_adapter", body, needs=needs, done="has already been loaded")

    def unload_adapter(self, label: str) -> None:
        """Forget an adapter; one that is not there is forgotten already."""
        self._change("/v1/unload_lora_adapter", {"lora_name": label}, needs="--enable-lora", done="cannot be found")

    # ── HTTP
    def _run(self, work: Callable[[aiohttp.ClientSession], Coroutine[Any, Any, T]]) -> T:
        async def within() -> T:
            connector = aiohttp.TCPConnector(limit=CONNECTIONS)
            async with aiohttp.ClientSession(
                timeout=self._timeout, connector=connector, headers=self._headers
            ) as session:
                return await work(session)

        return asyncio.run(within())

    def _get(self, path: str, *, needs: str = "") -> Any:
        async def get(session: aiohttp.ClientSession) -> Any:
            return await self._answer(session.get(self.url + path), path, SMALL_BYTES, needs)

        return self._run(get)

    def _change(self, path: str, body: Mapping[str, Any], *, needs: str, done: str = "") -> Any:
        """Post a change. An error with the text `done` means that the server is already in the requested state."""

        async def post(session: aiohttp.ClientSession) -> Any:
            try:
                return await self._post(session, path, body, needs=needs)
            except InvalidManifest as error:
                if done and done in str(error):
                    return None
                raise

        return self._run(post)

    async def _post(
        self,
        session: aiohttp.ClientSession,
        path: str,
        body: Mapping[str, Any],
        *,
        limit: int = SMALL_BYTES,
        needs: str = "",
    ) -> Any:
        return await self._answer(session.post(self.url + path, json=body), path, limit, needs)

    async def _answer(self, request: Any, path: str, limit: int, needs: str) -> Any:
        """Return the JSON (or text) of an answer."""
        try:
            async with request as response:
                status, content = response.status, await _bounded(response, limit)
        except TimeoutError as error:
            raise ServerUnavailable(f"{path} was not answered within {self._timeout_seconds:g} seconds") from error
        except (aiohttp.ClientError, OSError) as error:
            raise ServerUnavailable(f"{path}: {error or type(error).__name__}") from error
        if content is None:
            raise invalid_answer(self.url, f"more than {limit:,} bytes on {path}")
        if status == 200:
            return _read(content, self.url) if content.startswith((b"{", b"[")) else content.decode("utf-8", "replace")
        raise self._refusal(path, status, content.decode("utf-8", "replace"), needs)

    def _refusal(self, path: str, status: int, text: str, needs: str) -> Exception:
        """Return what a status other than 200 means."""
        message = _message(text)
        if status in (401, 403):
            return InvalidManifest(
                f"{PATH}.apiKeyEnv",
                None,
                f"the name of a variable with a key that {self.url} takes; it answered {status}",
            )
        if status == 404 and path == "/v1/completions" and "does not exist" in message:
            return StaleWeights(message)
        if status == 404 and (needs or path == "/v1/completions") and message == "Not Found":
            return InvalidManifest(
                f"{PATH}.url", self.url, f"a vLLM server that has {path}{f': {needs}' if needs else ''}"
            )
        hint = f"; it needs {needs}, and must see that folder under the same path" if needs else ""
        if status >= 500 or status in (408, 429):
            return ServerUnavailable(f"{path} answered {status}: {message}{hint}")
        return InvalidManifest(
            f"{PATH}.url",
            self.url,
            f"a server that takes what is sent to {path}; it answered {status}: {message}{hint}",
        )


async def _bounded(response: aiohttp.ClientResponse, limit: int) -> bytes | None:
    """Return the body, or None where it is longer than the limit; never hold more than that."""
    if (response.content_length or 0) > limit:
        return None
    parts, size = [], 0
    async for part in response.content.iter_chunked(1 << 16):
        size += len(part)
        if size > limit:
            return None
        parts.append(part)
    return b"".join(parts)


def _read(content: bytes, url: str) -> Any:
    def refuse(constant: str) -> float:
        raise ValueError(f"{constant} is no JSON")

    try:
        return bounded_json.loads(content, parse_constant=refuse)
    except ValueError as error:
        raise invalid_answer(url, f"what is no JSON ({str(error)[:100]})") from error


def _message(text: str) -> str:
    """Return the message of an error: vLLM's `{"error": {"message": …}}`, FastAPI's `{"detail": …}`, or the text."""
    try:
        found = bounded_json.loads(text)
        error = found.get("error", found.get("detail", text))
        message = error.get("message", error) if isinstance(error, Mapping) else error
    except (ValueError, AttributeError):
        message = text
    return " ".join(str(message).split())[:EXCERPT] or "nothing"
