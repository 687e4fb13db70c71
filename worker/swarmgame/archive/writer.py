"""The writer of an archive: an observer that keeps what a round generated and received.

Rows are made and compressed in a thread, beside the next round; a round waits only for the file of the round before.
Invariants: an archive that cannot be written ends itself and never the game; after a resume at round r it holds
rounds below r, as `metrics.jsonl` does.
"""

from __future__ import annotations

import json
import logging
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from swarmgame.archive.files import RoundFile, encode_round, remove_from, round_files, write_round
from swarmgame.archive.rows import RoundRecord, StageRecord, round_rows
from swarmgame.game.components import Notice, RolloutUse
from swarmgame.game.protocol import Collected
from swarmgame.game.report import Observer, RoundReport
from swarmgame.game.state import GameState, GroupKey, Rewards, Round
from swarmgame.game.verification import VerifiedRollouts

logger = logging.getLogger(__name__)

STATE = "archive.json"

LastUpdate = Callable[[], Mapping[GroupKey, Sequence[RolloutUse]] | None]


@dataclass(frozen=True)
class ArchiveState:
    """What an archive does not hold, and why: `archive.json`, which is there only when there is something.

    Args:
        dropped_rounds, dropped_bytes: oldest rounds that were removed to stay within the limit.
        too_large: rounds that alone were larger than the limit.
        off: why the archive was switched off; empty while it is on.
    """

    dropped_rounds: int = 0
    dropped_bytes: int = 0
    too_large: int = 0
    off: str = ""

    @classmethod
    def of(cls, folder: Path) -> ArchiveState:
        """Return the state of an archive; one that is missing or unreadable counts as empty."""
        try:
            return cls(**json.loads((folder / STATE).read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            return cls()


class RolloutArchive(Observer):
    """Writes a file for each finished round, and removes the oldest beyond a number of bytes.

    Args:
        folder: created when missing.
        max_bytes: of all files together.
        first_round: files of this and later rounds are removed: they will be played again.
        facts: of the process, for each file's head (the game, versions, threads, …); JSON-like.
        last_update: see `Trainer.last_update`.
    """

    def __init__(
        self,
        folder: Path,
        *,
        max_bytes: int,
        first_round: int,
        facts: Mapping[str, Any],
        last_update: LastUpdate,
    ) -> None:
        self.folder = folder
        self._max_bytes = max_bytes
        self._facts = facts
        self._last_update = last_update
        self._stages: list[StageRecord] = []
        self._files: deque[tuple[RoundFile, int]] = deque()
        self._total = 0
        self._state = ArchiveState()
        self._seconds = 0.0
        self._written = 0
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="archive")
        self._pending: Future[None] | None = None
        self._guarded(lambda: self._open(first_round))

    def _open(self, first_round: int) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        remove_from(self.folder, first_round)
        if first_round > 0:
            self._state = replace(ArchiveState.of(self.folder), off="")
        (self.folder / STATE).unlink(missing_ok=True)
        if self._state != ArchiveState():
            self._keep_state()
        for file in round_files(self.folder):
            self._added(file, file.path.stat().st_size)

    # ── the round
    def round_started(self, round: Round) -> None:
        self._stages = []

    def stage_verified(self, state: GameState, collected: Collected, verified: VerifiedRollouts) -> None:
        self._stages.append(StageRecord(collected, verified))

    def round_finished(self, report: RoundReport, state: GameState, rewards: Rewards) -> None:
        if self._state.off:
            return
        began = time.perf_counter()
        self.flush()
        uses = self._last_update()
        record = RoundRecord(state, rewards, tuple(self._stages), uses)
        head = {**self._facts, "round": report.round, "members": list(state.round.members), "weights": report.weights}
        self._pending = self._thread.submit(self._guarded, lambda: self._write(record, head))
        self._seconds += time.perf_counter() - began

    def game_finished(self, rounds: int) -> None:
        self.flush()

    def flush(self) -> None:
        """Wait until the last finished round is written. A checkpoint calls it, so that no round before it is missing
        after a crash.
        """
        if self._pending is not None:
            self._pending.result()
            self._pending = None

    def notices(self) -> Sequence[Notice]:
        """Return that the archive was switched off; nothing while it is on."""
        off = self._state.off
        return (Notice("archive-off", f"the archive of rollouts was switched off: {off}"),) if off else ()

    def close(self) -> None:
        """Write what is pending, and end the thread."""
        self.flush()
        self._thread.shutdown()
        logger.info("archived %d rounds in %.3f s of a processor and of waiting", self._written, self._seconds)

    # ── in the thread
    def _guarded(self, work: Callable[[], None]) -> None:
        """Do some work; if it fails, switch the archive off: an archive must not end a game."""
        if self._state.off:
            return
        try:
            work()
        except OSError as error:
            logger.error(
                "the archive of rollouts is switched off, and the game goes on without it: %s (%s); free space or make "
                "the folder writable, then start the peer again, or set spec.observability.rollouts.enabled to false",
                self.folder,
                error.strerror or error,
            )
            self._switch_off(str(error))
        except Exception as error:
            logger.exception("the archive of rollouts is switched off by an error, and the game goes on without it")
            self._switch_off(f"{type(error).__name__}: {error}")

    def _switch_off(self, reason: str) -> None:
        self._state = replace(self._state, off=reason)
        try:
            self._keep_state()
        except OSError as error:  # the disk that is full: the log has the reason
            logger.debug("%s was not written: %s", STATE, error)

    def _write(self, record: RoundRecord, head: Mapping[str, Any]) -> None:
        began = time.thread_time()
        described, rows = round_rows(record)
        data = encode_round({**head, **described}, rows)
        number = record.state.round.number
        if len(data) > self._max_bytes:
            if not self._state.too_large:
                logger.warning(
                    "round %d is not archived: its rollouts take %d bytes, more than all of the archive may "
                    "(spec.observability.rollouts.maxBytes is %d)",
                    number,
                    len(data),
                    self._max_bytes,
                )
            self._state = replace(self._state, too_large=self._state.too_large + 1)
            self._keep_state()
            return
        # The oldest go first, so that the archive never takes more than the limit.
        self._drop(len(data))
        self._added(write_round(self.folder, number, data), len(data))
        self._written += 1
        self._seconds += time.thread_time() - began

    def _drop(self, needed: int) -> None:
        before = self._state
        while self._files and self._total + needed > self._max_bytes:
            file, size = self._files.popleft()
            file.path.unlink(missing_ok=True)
            self._total -= size
            rounds, dropped = self._state.dropped_rounds + 1, self._state.dropped_bytes + size
            self._state = replace(self._state, dropped_rounds=rounds, dropped_bytes=dropped)
        if self._state != before:
            self._keep_state()
        if self._state.dropped_rounds and not before.dropped_rounds:
            logger.warning(
                "the archive of rollouts is full: its oldest rounds are removed from now on; "
                "spec.observability.rollouts.maxBytes, %d, is its limit",
                self._max_bytes,
            )

    def _added(self, file: RoundFile, size: int) -> None:
        self._files.append((file, size))
        self._total += size

    def _keep_state(self) -> None:
        temporary = self.folder / f".{STATE}"
        temporary.write_text(json.dumps(asdict(self._state)) + "\n", encoding="utf-8")
        temporary.replace(self.folder / STATE)
