"""Functions that are captured as CUDA graphs: their kernels are launched together, without the processor.

A `Graph` runs its function as it is the first time, which also makes what libraries make at their first call and costs
nothing where a shape is met only once; the second time it captures it, and replays it from then on. Graphs of one
`GraphPool` never run at the same time, so their temporary memory is the same.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

logger = logging.getLogger(__name__)


class GraphPool:
    """What graphs share.

    Args:
        capture: capture at all; False on devices without graphs.
    """

    def __init__(self, *, capture: bool) -> None:
        self.capture = capture
        self.memory: Any = None


class Graph:
    """One function of at most one tensor, with fixed shapes.

    Args:
        name: of what is computed, for a warning.
        compute: reads and writes fixed memory, but for its argument; must not wait for the device.
        given: an argument; later ones have its shape.
    """

    def __init__(
        self, name: str, compute: Callable[..., Tensor | None], pool: GraphPool, given: Tensor | None = None
    ) -> None:
        self._name, self._compute, self._pool = name, compute, pool
        self._given = given
        self._calls = 0
        self._graph: torch.cuda.CUDAGraph | None = None
        self._result: Tensor | None = None

    @property
    def is_captured(self) -> bool:
        return self._graph is not None

    def __call__(self, given: Tensor | None = None) -> Tensor | None:
        """Compute; a result is valid until the next call."""
        self._calls += 1
        if self._calls == 2 and self._pool.capture:
            self._capture()
        if self._graph is None:
            return self._compute() if given is None else self._compute(given)
        if given is not None and self._given is not None:
            self._given.copy_(given)
        self._graph.replay()
        return self._result

    def _capture(self) -> None:
        """Capture, or warn where the device refuses."""
        if self._given is not None:
            self._given = self._given.clone()
        try:
            graph = torch.cuda.CUDAGraph()
            # Only this thread is held to the rules of capturing: NCCL's watchdog queries events from its own.
            with torch.cuda.graph(graph, pool=self._pool.memory, capture_error_mode="thread_local"):
                self._result = self._compute() if self._given is None else self._compute(self._given)
        except torch.cuda.OutOfMemoryError:
            raise  # the caller gives memory back and tries again
        except RuntimeError as error:
            reason = str(error).partition("\n")[0]
            logger.warning(
                "%s could not be captured as a graph and runs operation by operation: %s", self._name, reason
            )
            return
        self._pool.memory = graph.pool()
        self._graph = graph
