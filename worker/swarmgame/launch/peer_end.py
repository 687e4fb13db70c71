"""How a peer's process ended and what the runner does about it, for people and for machines."""

from __future__ import annotations

import signal
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from swarmgame.launch.exit_record import ExitRecord


@dataclass(frozen=True)
class PeerEnd:
    """The end of one process that did not finish its game.

    Args:
        index: of the peer.
        code: its exit code; negative for a signal.
        record: what it recorded.
        log: where all of its output is.
        restart: the number of the restart that follows, counted from 1; 0 where none does.
        restarts: most restarts; of a peer that is given up, how many there were.
        given_up: whether the run goes on without this peer.
        is_same: whether the process before ended with the same message.
    """

    index: int
    code: int
    record: ExitRecord
    log: Path
    restart: int = 0
    restarts: int = 0
    given_up: bool = False
    is_same: bool = False

    @property
    def reason(self) -> str:
        """How it ended, as the start of a sentence."""
        return f"peer {self.index} {_describe_exit(self.code)}"

    def __str__(self) -> str:
        again = f"; restart {self.restart} of at most {self.restarts}" if self.restart else ""
        if self.given_up:
            again = f", after {self.restarts} restarts; it is given up, and the run goes on without it"
        if self.is_same:
            return f"{self.reason}{again}; the same error again"
        return "\n".join([f"{self.reason}{again}", *indented(self.record.message, f"log: {shown_path(self.log)}")])

    def as_json(self) -> dict[str, Any]:
        """Return the end as one object of the JSON lines of a run; `event` tells it from a round."""
        failure = self.record.failure
        return {
            "event": "peer-ended",
            "peer": self.index,
            "code": self.code,
            "message": self.record.message,
            "failure": None if failure is None else failure.as_json(),
            "restart": self.restart,
            "restarts": self.restarts,
            "given_up": self.given_up,
            "log": str(self.log),
        }


def indented(*texts: str) -> list[str]:
    """Return the lines of texts, each indented by two."""
    return [f"  {line}" for text in texts for line in text.splitlines()]


def shown_path(path: Path) -> str:
    """Return a path below the working directory relative to it, any other as it is."""
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)


def _describe_exit(code: int) -> str:
    if code < 0:
        known = -code in set(signal.Signals)
        return f"was killed by {signal.Signals(-code).name if known else f'signal {-code}'}"
    return f"ended with exit code {code}"
