"""Generation by a vLLM server: prompts go out as token ids, each update of the policy is loaded into it.

Adapters (LoRA) are saved into a folder that both see and loaded under a new name, then the old name is unloaded; all
weights are saved as safetensors and reloaded in place. The name (or the label of the weights) carries the policy's
version. So an answer of other weights, such as those of a server that was started again, is noticed, counted in
`engine_stale`, thrown away, and requested again once the weights are there.

Not exact: vLLM's log-probabilities differ from a training forward's by more than rounding, so its rollouts are
corrected by importance weights like those of a remote peer (`importance*` options), and `mismatch_kl` measures the
difference. They are those of the distribution that was sampled from, temperature, top-k, top-p and minimum length
included (vLLM's `processed_logprobs`). The same seed makes the same requests; but vLLM's numbers depend on what shares
a batch, so the completions of two runs differ: a resumed run has the same state and new samples.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from threading import Lock

from swarmgame.errors import InvalidManifest, Temporary, writing
from swarmgame.game.ranks import Ranks
from swarmgame.inference.sampler import Sampled, SamplingParams, check_request
from swarmgame.inference.vllm_client import VllmClient
from swarmgame.inference.vllm_completions import PromptRequest, ServerUnavailable, StaleWeights
from swarmgame.inference.vllm_process import PATH, VllmProcess, wait_until_healthy
from swarmgame.seeds import derive_seed
from swarmgame_api.sampler import VllmOptions

logger = logging.getLogger(__name__)

ATTEMPTS = 5
"""How often the same completions, or the same push of weights, are tried."""
FIRST_DELAY_SECONDS = 0.5
NAMES = ("engine_requests", "engine_retries", "engine_seconds", "engine_stale", "engine_pushes", "engine_push_seconds")


ROWS_PER_CALL = 65_536
"""Completions that one call may request."""


class VllmSampler:
    """Samples from a server that is kept at the policy's version. Safe to call from several threads, which then wait
    for one another.

    Args:
        options: from the manifest.
        client: makes a client for an address.
        save: writes what is trained into an empty folder: adapters as peft has them, or all weights as safetensors.
        adapters: whether adapters alone are trained.
        folder: where weights are handed over; the server sees it under the same path.
        longest: prompt and completion together, in tokens; the server must take that many.
        ranks: of this peer. They share the server; every one sees to it that its version is there.
        process: the server, where rank 0 of this peer starts it.
        url: of a server that is started elsewhere; empty with `process`.
    """

    exact = False
    uses_model = False

    def __init__(
        self,
        options: VllmOptions,
        client: Callable[[str], VllmClient],
        save: Callable[[Path], None],
        *,
        adapters: bool,
        folder: Path,
        longest: int,
        ranks: Ranks,
        process: VllmProcess | None,
        url: str = "",
    ) -> None:
        self._options = options
        self._save = save
        self._adapters = adapters
        self._folder = folder
        self._longest = longest
        self._ranks = ranks
        self._process = process
        if process is not None:
            process.start()  # it loads while this peer does
        received = ranks.broadcast(
            json.dumps([process.url if process else url, uuid.uuid4().hex[:8]]).encode() if ranks.rank == 0 else None
        )
        # A life is one start of the peer: after a resume the same version may be other weights.
        self._url, self._life = json.loads(received)
        self._client = client(self._url)
        self._base = ""
        self._version = 0
        self._pushed: str | None = None
        self._probed = False
        self._lock = Lock()
        self._counts = dict.fromkeys(NAMES, 0.0)

    # ── the protocol
    def sample(
        self,
        prompts: Sequence[Sequence[int]],
        n: int,
        params: SamplingParams,
        seed: int,
        *,
        first_row: int = 0,
        budgets: Sequence[int] | None = None,
    ) -> list[list[Sampled]]:
        """See `Sampler.sample`.

        Raises:
            Temporary: the server did not answer, or lost its weights, after all retries.
            BadData: it answered something that no sampler may answer.
            InvalidManifest: it is not a server that can do what is needed.
        """
        check_request(prompts, n, params, budgets)
        requests = [
            PromptRequest(tuple(prompt), n, budget, derive_seed("vllm", seed, first_row + index * n))
            for index, (prompt, budget) in enumerate(
                zip(prompts, budgets or [params.max_new_tokens] * len(prompts), strict=True)
            )
        ]
        with self._lock:
            began = time.monotonic()
            try:
                return self._sample(requests, params) if requests else []
            finally:
                self._counts["engine_seconds"] += time.monotonic() - began

    def update_weights(self, version: int) -> None:
        """Push the policy's weights. A call of all ranks.

        Raises:
            Temporary, InvalidManifest: as `sample`; on every rank.
        """
        with self._lock:
            self._version = version
            if self._ranks.size == 1:
                self._patiently(self._ready)
                return
            failure: Exception | None = None
            if self._ranks.rank == 0:
                try:
                    self._patiently(self._ready)
                except (Temporary, InvalidManifest) as error:
                    failure = error
            received = self._ranks.broadcast(str(failure or "").encode() if self._ranks.rank == 0 else None).decode()
            if failure is not None:
                raise failure
            if received:
                raise Temporary(f"rank 0 could not push the weights: {received}")

    def limit(self, rows: int) -> int:
        """See `Sampler.limit`: the server queues what it cannot hold, so a call may request any number."""
        return max(rows, ROWS_PER_CALL)

    def release(self) -> bool:
        """See `Sampler.release`: the server's memory is its own, fixed by `gpuMemoryUtilization`."""
        return False

    def metrics(self) -> Mapping[str, float]:
        """See `Sampler.metrics`: requests, repeats, seconds, answers of stale weights, pushes and their seconds."""
        counts, self._counts = self._counts, dict.fromkeys(NAMES, 0.0)
        return counts

    def close(self) -> None:
        """End the server that was started here, and remove the weights that were handed over."""
        if self._process is not None:
            self._process.stop()
        if self._ranks.rank == 0:
            for old in self._folder.glob(f"policy-{self._life}-*"):
                shutil.rmtree(old, ignore_errors=True)

    # ── completions
    def _sample(self, requests: Sequence[PromptRequest], params: SamplingParams) -> list[list[Sampled]]:
        found: list[list[Sampled] | None] = [None] * len(requests)

        def request() -> None:
            self._ready()
            self._probe(requests[0].prompt, params)
            missing = [index for index, group in enumerate(found) if group is None]
            self._counts["engine_requests"] += len(missing)
            model, weights = (self._label, "") if self._adapters else (self._base, self._label)
            answers = self._client.complete(model, [requests[index] for index in missing], params, weights=weights)
            stale = next((answer for answer in answers if isinstance(answer, StaleWeights)), None)
            if stale is not None:
                raise stale
            # Servers before 0.33 do not name the weights in an answer.
            if not self._adapters and self._client.weight_version() != self._label:
                raise StaleWeights(f"the server lost the weights {self._label} while it generated")
            for index, answer in zip(missing, answers, strict=True):
                found[index] = answer if isinstance(answer, list) else None
            if problems := [answer for answer in answers if isinstance(answer, ServerUnavailable)]:
                raise problems[0]

        self._patiently(request)
        return [group for group in found if group is not None]

    def _patiently(self, work: Callable[[], None]) -> None:
        """Do something that may fail for a while, with growing pauses."""
        for attempt in range(1, ATTEMPTS + 1):
            try:
                work()
                return
            except (ServerUnavailable, StaleWeights) as error:
                self._pushed = None
                if self._process is not None and isinstance(error, ServerUnavailable):
                    self._process.doubt()
                self._counts["engine_retries"] += 1
                self._counts["engine_stale"] += isinstance(error, StaleWeights)
                logger.warning("vLLM at %s: %s (attempt %d of %d)", self._url, error, attempt, ATTEMPTS)
                if attempt == ATTEMPTS:
                    raise Temporary(
                        f"the vLLM server at {self._url} failed {ATTEMPTS} times: {error}. {self._cure}"
                    ) from error
                time.sleep(FIRST_DELAY_SECONDS * 2 ** (attempt - 1))

    @property
    def _cure(self) -> str:
        if self._process is not None:
            return f"Its log is {self._process.log}"
        return f"See whether it runs and can be reached, and raise {PATH}.timeoutSeconds if it is only slow"

    def _probe(self, prompt: tuple[int, ...], params: SamplingParams) -> None:
        """Refuse an existing server whose log-probabilities are not those at the sampling temperature."""
        if self._probed or params.greedy or (params.temperature == 1 and params.is_plain and not params.min_new_tokens):
            return
        if self._options.url and not self._client.scales_logprobs(
            self._label if self._adapters else self._base, prompt
        ):
            raise InvalidManifest(
                f"{PATH}.url",
                self._url,
                "a server started with --logprobs-mode=processed_logprobs: temperature, top-k, top-p or a minimum "
                "length is set",
            )
        self._probed = True

    # ── weights
    @property
    def _label(self) -> str:
        """The name of the policy's weights at this version."""
        return f"policy-{self._life}-{self._version}"

    def _ready(self) -> None:
        """Bring the server up, and the weights into it, where they are not there already."""
        if self._process is not None:
            starts = self._process.starts
            self._process.ensure()
            if self._process.starts != starts:
                self._pushed = None  # a new process has the model's own weights
        if self._pushed == self._label:
            return
        if self._pushed is None:
            if self._process is None and not wait_until_healthy(self._url, self._options.startup_seconds):
                raise Temporary(
                    f"no vLLM server was ready at {self._url} within {self._options.startup_seconds} seconds. "
                    f"{self._cure}"
                )
            self._meet()
        if not self._has_weights():
            self._push()
        self._pushed = self._label

    def _meet(self) -> None:
        """Check the server, which may be another one than before."""
        model, _ = self._client.served()
        self._base = model.name
        if model.max_model_len < self._longest:
            raise InvalidManifest(
                f"{PATH}.maxModelLen",
                model.max_model_len,
                f"at least {self._longest}: the longest prompt and maxNewTokens (or lower maxPromptTokens)",
            )
        logger.info(
            "vLLM %s at %s serves %s, %d tokens at most",
            self._client.version(),
            self._url,
            model.root,
            model.max_model_len,
        )

    def _has_weights(self) -> bool:
        return (
            self._label in self._client.served()[1] if self._adapters else self._client.weight_version() == self._label
        )

    def _push(self) -> None:
        began = time.monotonic()
        folder = self._saved()
        if self._adapters:
            self._client.load_adapter(folder, self._label)
        else:
            self._client.reload(folder, self._label)
        self._forget_older()
        seconds = time.monotonic() - began
        self._counts["engine_pushes"] += 1
        self._counts["engine_push_seconds"] += seconds
        logger.info("pushed %s to vLLM in %.2f seconds", self._label, seconds)

    def _saved(self) -> Path:
        """The folder with this version: written aside and renamed, so that it is never read half written."""
        folder = self._folder / self._label
        if not folder.exists():
            aside = self._folder / f".{self._label}.{os.getpid()}"
            shutil.rmtree(aside, ignore_errors=True)
            try:
                aside.mkdir(parents=True)
                with writing(self._folder):  # safetensors raises no OSError
                    self._save(aside)
                if not folder.exists():
                    aside.rename(folder)
            except OSError as error:
                raise Temporary(
                    f"the weights cannot be handed over in {self._folder}: {error.strerror or error}"
                ) from error
            finally:
                shutil.rmtree(aside, ignore_errors=True)
        return folder

    def _forget_older(self) -> None:
        """Unload and remove earlier versions. The server lives on with one that it does not let go; that is logged."""
        loaded = self._client.served()[1] if self._adapters else frozenset()
        for old in sorted(name for name in loaded if name.startswith(f"policy-{self._life}-") and name != self._label):
            try:
                self._client.unload_adapter(old)
            except (ServerUnavailable, InvalidManifest) as error:
                logger.warning("vLLM does not unload %s: %s", old, error)
        for folder in self._folder.glob(f"policy-{self._life}-*"):
            if folder.name != self._label:
                shutil.rmtree(folder, ignore_errors=True)
