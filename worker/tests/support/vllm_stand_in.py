"""A stand-in for `vllm serve`: the endpoints, field names, error shapes and quirks that the client meets, over a tiny
model and our own sampler.

Read from vLLM 0.33.0. Its log-probabilities are true. As a program it is what a manifest's `sampler.command` names; in
a test it is a thread with `faults`. Quirks kept: a greedy request takes n=1 alone; a budget that does not fit is
lowered; unknown fields are accepted; the endpoints for weights are there in dev mode only; weights that were reloaded
serve once the prefix cache was reset; what was pushed is gone after a restart; an adapter cannot be loaded twice.
"""

from __future__ import annotations

import contextlib
import copy
import json
import sys
import threading
import time
from collections.abc import Callable, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from swarmgame.inference.decoding import Decoding
from swarmgame.inference.eager import EagerSampler
from swarmgame.inference.sampler import Sampled, SamplingParams
from swarmgame.inference.stop_strings import cut_at_stop
from swarmgame.inference.token_sampler import TokenSampler

Fault = Callable[[str, dict[str, Any]], Any]
"""From a path and the answer to another answer: a dictionary, bytes, a (status, dictionary), or None to hang up."""


class Refused(Exception):
    """An error in vLLM's format."""

    def __init__(self, status: int, message: str, kind: str = "BadRequestError") -> None:
        super().__init__(message)
        self.status, self.message, self.kind = status, message, kind


class Engine:
    """The model and its adapters. One request at a time."""

    def __init__(
        self,
        model: Any,
        *,
        max_model_len: int = 4096,
        lora: bool = False,
        dev: bool = True,
        processed: bool = True,
        api_key: str = "",
        versions: bool = True,
        root: str = "",
        decode: Callable[[Sequence[int]], str | None] | None = None,
    ) -> None:
        self.decode = decode
        self.model, self._next, self._adapted = model, None, None
        self.max_model_len, self.lora, self.dev, self.processed, self.api_key = (
            max_model_len,
            lora,
            dev,
            processed,
            api_key,
        )
        self.versions, self.root = versions, root
        self.adapters: dict[str, str] = {}
        self.weight_version = "default"
        self.requests: list[tuple[str, dict[str, Any]]] = []
        self.faults: list[Fault] = []
        self.lock = threading.Lock()

    def answer(self, path: str, body: dict[str, Any]) -> Any:
        """The answer to a request; raises Refused."""
        routes: dict[str, Callable[[dict[str, Any]], Any]] = {
            "/health": lambda _: "",
            "/version": lambda _: {"version": "0.33.0"},
            "/v1/models": lambda _: self._models(),
            "/v1/completions": self._complete,
        }
        if self.lora:
            routes |= {"/v1/load_lora_adapter": self._load_adapter, "/v1/unload_lora_adapter": self._unload_adapter}
        if self.dev:
            routes |= {
                "/collective_rpc": self._rpc,
                "/reset_prefix_cache": self._reset,
                "/update_weight_version": self._label,
            }
            routes |= {"/weight_info": lambda _: {"weight_version": self.weight_version}}
        if path not in routes:
            raise Refused(404, "Not Found", "Not Found")
        with self.lock:
            self.requests.append((path, body))
            return routes[path](body)

    def _models(self) -> Any:
        base = {"id": "base", "object": "model", "root": self.root, "parent": None, "max_model_len": self.max_model_len}
        return {
            "object": "list",
            "data": [base, *({"id": name, "root": at, "parent": "base"} for name, at in self.adapters.items())],
        }

    # ── completions
    @torch.no_grad()
    def _complete(self, body: dict[str, Any]) -> Any:
        name, prompt, n, most = body["model"], body["prompt"], body.get("n", 1), body.get("max_tokens", 16)
        if name != "base" and name not in self.adapters:
            raise Refused(404, f"The model `{name}` does not exist. Valid aliases: base.", "NotFoundError")
        most = min(most, self.max_model_len - len(prompt))
        if most < 1:
            raise Refused(
                400,
                f"This model's maximum context length is {self.max_model_len} tokens, however you requested "
                f"{len(prompt)}.",
            )
        greedy = body.get("temperature", 1.0) < 1e-5
        if greedy and n > 1:
            raise Refused(400, f"n must be 1 when using greedy sampling, got {n}.")
        params = SamplingParams(
            most,
            temperature=1.0 if greedy else body["temperature"],
            top_k=body.get("top_k", 0),
            top_p=body.get("top_p", 1.0),
            min_new_tokens=body.get("min_tokens", 0),
            greedy=greedy,
        )
        self._use(name)
        stops = body.get("stop_token_ids") or []
        [group] = EagerSampler(self.model, stops, 0, decoding=Decoding.CACHED).sample(
            [prompt], n, params, body.get("seed") or 0
        )
        if body.get("stop"):
            assert self.decode is not None
            assert body["include_stop_str_in_output"]
            least = params.min_new_tokens
            group = [cut_at_stop(each, body["stop"], self.decode, least=least) for each in group]
        scored = {
            ids: self._logprobs(prompt, list(ids), params, stops) for ids in {tuple(each.token_ids) for each in group}
        }
        choices = [
            self._choice(index, sampled, body, *scored[tuple(sampled.token_ids)]) for index, sampled in enumerate(group)
        ]
        return {
            "id": "cmpl-1",
            "object": "text_completion",
            "model": name,
            "choices": choices,
            "usage": {"prompt_tokens": len(prompt)},
        }

    def _choice(
        self, index: int, sampled: Sampled, body: dict[str, Any], logprobs: list[float], best: list[tuple[int, float]]
    ) -> dict[str, Any]:
        ids = list(sampled.token_ids)
        names = [f"token_id:{token}" for token in ids] if body.get("return_tokens_as_token_ids") else ["?"] * len(ids)
        top = [{name: value} for name, value in zip(names, logprobs, strict=True)]
        if body["logprobs"]:
            top = [{f"token_id:{token}": value} | each for (token, value), each in zip(best, top, strict=True)]
        choice: dict[str, Any] = {
            "index": index,
            "text": "",
            "finish_reason": "stop" if sampled.stopped else "length",
            "stop_reason": self._stop_reason(ids, body) if sampled.stopped else None,
            "logprobs": {
                "tokens": names,
                "token_logprobs": logprobs,
                "top_logprobs": top,
                "text_offset": [0] * len(ids),
            },
        }
        if body.get("return_token_ids"):
            choice |= {"token_ids": ids, "prompt_token_ids": body["prompt"]}
        if body.get("return_weight_versions") and self.versions:
            choice["weight_versions"] = [{"version": self.weight_version, "start": 0, "end": len(ids)}]
        return choice

    def _stop_reason(self, ids: list[int], body: dict[str, Any]) -> int | str:
        if ids[-1] in (body.get("stop_token_ids") or []):
            return ids[-1]
        text = (self.decode(ids) if self.decode else "") or ""
        return next(string for string in body["stop"] if string in text)

    def _logprobs(
        self, prompt: list[int], ids: list[int], params: SamplingParams, stops: list[int]
    ) -> tuple[list[float], list[tuple[int, float]]]:
        """Processed: after temperature, minimum length, top-k and top-p, and normalized again. Raw: of the logits as
        they are.
        """
        device = self.model.device
        logits = self.model(torch.tensor([prompt + ids], device=device)).logits[0, len(prompt) - 1 : -1].float()
        if self.processed and not params.greedy:
            forbidden = torch.arange(len(ids), device=device) < params.min_new_tokens
            sampler = TokenSampler(params, stops)
            scaled = sampler._without_eos(logits / params.temperature, forbidden)
            allowed = sampler._filtered(torch.log_softmax(scaled, -1))
            logprobs = torch.log_softmax(allowed, -1)
        else:
            logprobs = torch.log_softmax(logits, -1)
        chosen = logprobs.gather(1, torch.tensor(ids, device=device).unsqueeze(1)).squeeze(1)
        best = logprobs.max(dim=-1)
        return [max(value, -9999.0) for value in chosen.tolist()], list(
            zip(best.indices.tolist(), best.values.tolist(), strict=True)
        )

    def _use(self, name: str) -> None:
        if self._adapted is None:
            return
        if name == "base":
            self._adapted.base_model.disable_adapter_layers()
        else:
            self._adapted.base_model.enable_adapter_layers()
            self._adapted.set_adapter(name)

    # ── weights
    def _rpc(self, body: dict[str, Any]) -> Any:
        if body.get("method") != "reload_weights":
            raise Refused(500, f"no method {body.get('method')}", "InternalServerError")
        folder = Path(body["kwargs"]["weights_path"])
        if not list(folder.glob("*.safetensors")):
            raise Refused(500, f"Cannot find any model weights with `{folder}`", "InternalServerError")
        self._next = AutoModelForCausalLM.from_pretrained(folder, dtype=self.model.dtype).eval().to(self.model.device)
        return {"results": [None]}

    def _reset(self, _: dict[str, Any]) -> Any:
        if self._next is not None:
            self.model, self._next = self._next, None
        return {"success": True}

    def _label(self, body: dict[str, Any]) -> Any:
        self.weight_version = body["new_version"]
        return {"success": True, "new_version": self.weight_version}

    def _load_adapter(self, body: dict[str, Any]) -> Any:
        name, path = body["lora_name"], body["lora_path"]
        if name in self.adapters:
            raise Refused(
                400,
                f"The lora adapter '{name}' has already been loaded. If you want to load the adapter in place, "
                "set 'load_inplace'",
            )
        if not (Path(path) / "adapter_model.safetensors").exists():
            raise Refused(404, f"Loading lora {name} failed: No adapter found for {path}", "NotFoundError")
        if self._adapted is None:
            self._adapted = PeftModel.from_pretrained(self.model, path, adapter_name=name)
        else:
            self._adapted.load_adapter(path, adapter_name=name)
        self.adapters[name] = path
        return f"Success: LoRA adapter '{name}' added successfully."

    def _unload_adapter(self, body: dict[str, Any]) -> Any:
        name = body["lora_name"]
        if name not in self.adapters:
            raise Refused(404, f"The lora adapter '{name}' cannot be found.", "NotFoundError")
        del self.adapters[name]
        self._adapted.delete_adapter(name)
        return f"Success: LoRA adapter '{name}' removed successfully."


class StandIn:
    """A server in a thread; `with StandIn(engine) as server: server.url`. `restart` forgets what was pushed, as a new
    process would.
    """

    def __init__(self, engine: Engine, port: int = 0) -> None:
        self.engine = engine
        self._fresh = {"model": copy.deepcopy(engine.model)}
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                self._serve({})

            def do_POST(self) -> None:
                text = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                self._serve(json.loads(text) if text else {})

            def _serve(self, body: dict[str, Any]) -> None:
                engine, path = outer.engine, self.path.partition("?")[0]
                status: int
                answer: Any
                if (
                    engine.api_key
                    and path.startswith("/v1")
                    and self.headers.get("Authorization") != f"Bearer {engine.api_key}"
                ):
                    status, answer = 401, {"error": "Unauthorized"}
                else:
                    try:
                        status, answer = 200, engine.answer(path, body)
                        for fault in engine.faults:
                            answer = fault(path, answer)
                            if isinstance(answer, tuple):
                                status, answer = answer
                    except Refused as error:
                        shape = {"message": error.message, "type": error.kind, "param": None, "code": error.status}
                        status, answer = error.status, {"error": shape}
                if answer is None:
                    self.close_connection = True
                    return
                content = (
                    answer
                    if isinstance(answer, bytes)
                    else answer.encode()
                    if isinstance(answer, str)
                    else json.dumps(answer).encode()
                )
                with contextlib.suppress(OSError):  # the client has gone
                    self.send_response(status)
                    self.send_header("Content-Length", str(len(content)))
                    self.end_headers()
                    self.wfile.write(content)

            def log_message(self, format: str, *arguments: Any) -> None:
                return

        self.server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"

    def restart(self) -> None:
        """What was pushed is gone."""
        self.engine.model = copy.deepcopy(self._fresh["model"])
        self.engine._adapted, self.engine.adapters, self.engine.weight_version = None, {}, "default"

    def __enter__(self) -> StandIn:
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()
        self.server.server_close()


def main(arguments: list[str]) -> int:
    """`serve MODEL --port=N …`, as the manifest's `command` starts it."""
    if arguments[:1] != ["serve"]:
        print(f"usage: serve MODEL …; got {arguments}", file=sys.stderr)
        return 2
    options = dict(argument[2:].partition("=")[::2] for argument in arguments[2:])
    torch.set_num_threads(1)
    model = AutoModelForCausalLM.from_pretrained(arguments[1], dtype=torch.float32).eval()
    engine = Engine(
        model,
        max_model_len=int(options.get("max-model-len", 4096)),
        lora="enable-lora" in options,
        processed=options.get("logprobs-mode") == "processed_logprobs",
        root=arguments[1],
    )
    print(f"stand-in for vLLM: {arguments}", flush=True)
    if "slow-start" in options:
        time.sleep(float(options["slow-start"]))
    if "fail" in options:
        print("ValueError: No available memory for the cache blocks", file=sys.stderr)
        return 1
    StandIn(engine, int(options["port"])).server.serve_forever()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
