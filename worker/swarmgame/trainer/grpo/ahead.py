"""Generation ahead: rollouts of the next round's first stage, sampled in a thread while the current round waits.

The thread computes token ids and nothing else; prompts are encoded, ranks are gathered and text is decoded on the main
thread. Only rollouts whose request (round, prompts, sampling parameters, ranks) equals the round's own request in the
end are handed out; others are dropped and counted. Invariant: `finish` is called before the weights change or another
thread samples, so the rollouts are those of one policy version.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import torch

from swarmgame.inference.sampler import Sampled
from swarmgame.trainer.grpo.generation import Generation, pack, unpack
from swarmgame.trainer.grpo.request import Request

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Rollouts:
    """Completions that were sampled before their round began.

    Args:
        key: of the request.
        version: of the policy that sampled them.
        completions: of every rank, one list a prompt.
    """

    key: str
    version: int
    completions: list[list[Sampled]]


class GenerationAhead:
    """Samples one request at a time in a thread, and keeps the rollouts until their round has been trained on.

    Args:
        generation: used by one thread at a time.
        device: where the sampler computes; a new thread would otherwise use the first CUDA device.
    """

    def __init__(self, generation: Generation, device: torch.device) -> None:
        self._generation = generation
        self._device = device
        self._thread: ThreadPoolExecutor | None = None
        self._running: tuple[Request, int, Future[list[list[Sampled]]]] | None = None
        self._finished: dict[int, Rollouts] = {}
        self._dropped = 0
        self._warned = False

    def begin(self, request: Request, version: int) -> None:
        """Start to sample a request with the weights as they are now."""
        self.finish()
        if self._thread is None:
            self._thread = ThreadPoolExecutor(1, thread_name_prefix="generate-ahead")
        self._running = request, version, self._thread.submit(self._sample, request)

    def _sample(self, request: Request) -> list[list[Sampled]]:
        if self._device.type == "cuda" and self._device.index is not None:
            torch.cuda.set_device(self._device)
        return self._generation.own_share(request.token_ids, request.n, request.params, seed=request.seed)

    def finish(self) -> bool:
        """Wait for the thread, and gather what all ranks sampled. Every rank calls it at the same place, on its main
        thread.

        Returns:
            Whether there was anything to wait for.

        Raises:
            Exception: whatever ended the thread, `Temporary` for a device without memory.
        """
        if self._running is None:
            return False
        request, version, future = self._running
        self._running = None
        completions = self._generation.gather(future.result(), len(request.prompts))
        self._finished[request.round] = Rollouts(request.key, version, completions)
        return True

    def take(self, request: Request) -> Rollouts | None:
        """Return the rollouts of a request, if they were sampled ahead; they stay until `forget`, because the round
        may be played again.

        Rollouts of earlier rounds, which this peer skipped, and those of other prompts are dropped.
        """
        for number in [number for number in self._finished if number < request.round]:
            self._drop(number, f"round {number} was skipped")
        found = self._finished.get(request.round)
        if found is None or found.key == request.key:
            return found
        self._drop(
            request.round,
            "its questions are not those that were expected: a curriculum moved, or the membership changed",
        )
        return None

    def _drop(self, number: int, reason: str) -> None:
        del self._finished[number]
        self._dropped += 1
        logger.log(
            logging.INFO if self._warned else logging.WARNING,
            "rollouts generated ahead for round %d are thrown away: %s",
            number,
            reason,
        )
        self._warned = True

    def forget(self, number: int) -> int:
        """Forget the rollouts of a round that was trained on; return how many requests were dropped since the last
        call.
        """
        self._finished.pop(number, None)
        dropped, self._dropped = self._dropped, 0
        return dropped

    def close(self) -> None:
        """End the thread, after the generation under way: a thread cannot be stopped inside a step of the model."""
        if self._thread is not None:
            self._thread.shutdown(wait=True)
            self._thread = None
        if self._running is not None:
            (request, _, future), self._running = self._running, None
            error = future.exception()
            if error is not None:
                logger.error(
                    "generating ahead for round %d failed; its rollouts are no longer needed: %s",
                    request.round,
                    error,
                )

    # ── checkpoints
    def state_dict(self) -> list[dict[str, Any]]:
        """Finished rollouts that were not trained on. Those under way are left out: the weights that sample them are
        the checkpoint's own.
        """
        return [
            {"round": number, "key": done.key, "version": done.version, "completions": pack(done.completions)}
            for number, done in sorted(self._finished.items())
        ]

    def load_state_dict(self, state: Sequence[Mapping[str, Any]]) -> None:
        self._finished = {
            int(saved["round"]): Rollouts(str(saved["key"]), int(saved["version"]), unpack(saved["completions"]))
            for saved in state
        }
