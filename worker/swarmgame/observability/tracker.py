"""Tracker: an observer that writes a peer's numbers to an experiment tracker (TensorBoard, Weights & Biases, trackio).

A tracker is a component: `spec.observability.trackers` names it, and it has a `Config`. Its library is imported when it
is opened. Invariant: a tracker that fails in the middle of a run is off from then on, with a warning; the game goes on,
and `metrics.jsonl` has every number.
"""

from __future__ import annotations

import json
import logging
import secrets
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stdout
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar

from swarmgame.errors import InvalidManifest
from swarmgame.game.components import Component, Notice
from swarmgame.game.evaluation import Evaluation
from swarmgame.game.report import Observer, RoundReport
from swarmgame.game.state import GameState, Rewards
from swarmgame.observability.run_directory import write_atomically

logger = logging.getLogger(__name__)
RECORD = "tracker.json"
"""In the peer's folder: the key of the run, and how many rounds each tracker has logged."""


class Tracker(Component, Observer, ABC):
    """Base of all trackers: `open`, `log` and `close_run` are theirs, order and errors are handled here."""

    package: ClassVar[str] = ""
    """The package that must be installed; empty for none."""
    extra: ClassVar[str] = ""
    """The extra of swarmgame that installs it."""
    replaces: ClassVar[bool] = False
    """Whether numbers of rounds that are played again after a crash replace the first ones. Where they cannot, these
    rounds are not logged again."""

    _running = False
    _logged = 0
    _off = ""

    @classmethod
    def require_package(cls, path: str) -> None:
        """Check that the library is installed; does not import it.

        Args:
            path: of the tracker in the manifest.

        Raises:
            InvalidManifest: it is not; names the command that installs it.
        """
        if cls.package and find_spec(cls.package) is None:
            command = f"pip install 'swarmgame[{cls.extra}]'" if cls.extra else f"pip install {cls.package}"
            raise InvalidManifest(
                f"{path}.use", cls.package, f"the package {cls.package}, which is not installed here: {command}"
            )

    @abstractmethod
    def open(self, first_round: int) -> None:
        """Begin the run, or go on with it.

        Args:
            first_round: with `replaces`, numbers of this and later rounds, from before a crash, are to be replaced.

        Raises:
            InvalidManifest: the configuration or the environment (a missing key) cannot be used.
        """

    @abstractmethod
    def log(self, values: Mapping[str, float], step: int) -> None:
        """Write numbers.

        Args:
            values: finite numbers by name; `/` separates a group from a name.
            step: number of rounds that were finished when they were measured.
        """

    def close_run(self) -> None:
        """Write what is left, and close."""

    @property
    def directory(self) -> Path:
        """A folder of this peer; the current one outside of a run."""
        return self.context.directory or Path()

    def run_key(self) -> str:
        """Return eight digits that name this run of this peer, the same after a resume and other ones after a fresh
        start: names and ids of runs contain them.
        """
        found = self._record()
        if "run" not in found:
            found["run"] = secrets.token_hex(4)
            self._write_record(found)
        return str(found["run"])

    def notices(self) -> Sequence[Notice]:
        """Return that this tracker is off after an error; nothing while it is on."""
        return (Notice("tracker-off", self._off),) if self._off else ()

    # ── the record of this run, for the next process
    def _record(self) -> dict[str, Any]:
        path = self.directory / RECORD
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        return found

    def _write_record(self, record: Mapping[str, Any]) -> None:
        write_atomically(self.directory / RECORD, json.dumps(record) + "\n")

    def _key(self) -> str:
        """The name of this tracker in the record: its class and options."""
        return f"{type(self).__name__} {self.config.model_dump_json()}"

    def _remember(self, rounds: int) -> None:
        record = self._record()
        self._write_record({**record, "logged": {**record.get("logged", {}), self._key(): rounds}})

    # ── hooks
    def game_started(self, first_round: int, max_rounds: int) -> None:
        self._running = True
        self._attempt(lambda: self._open(first_round))

    def round_finished(self, report: RoundReport, state: GameState, rewards: Rewards) -> None:
        if report.round >= self._logged:
            self._attempt(lambda: self._log_round(report))

    def _open(self, first_round: int) -> None:
        if not self.replaces:
            self._logged = int(self._record().get("logged", {}).get(self._key(), 0))
        self.open(first_round)

    def _log_round(self, report: RoundReport) -> None:
        for step, values in series_of(report):
            self.log(values, step)
        if not self.replaces and self.context.directory is not None:
            self._remember(report.round + 1)

    def game_finished(self, rounds: int) -> None:
        self.close()

    def close(self) -> None:
        self._attempt(self.close_run)
        self._running = False

    def _attempt(self, action: Callable[[], None]) -> None:
        if not self._running:
            return
        try:
            with redirect_stdout(sys.stderr):  # libraries print notices; standard output belongs to the rounds
                action()
        except InvalidManifest:
            raise
        except Exception as error:
            # Any library may fail in any way, on a full disk or without a network; training does not depend on it.
            self._running = False
            self._off = f"{type(self).__name__} is off until this peer starts again: {error}"
            logger.warning(
                "%s failed and is off until this peer starts again (%s: %s); metrics.jsonl has every number",
                type(self).__name__,
                type(error).__name__,
                error,
                exc_info=True,
            )


def series_of(report: RoundReport) -> list[tuple[int, dict[str, float]]]:
    """Return the numbers of a round as (finished rounds, numbers by name); an evaluation counts the round before it."""
    rounds: dict[str, float] = {
        "reward/mean": report.reward,
        **{f"reward/stage_{stage}": value for stage, value in enumerate(report.stage_rewards)},
        **{f"reward/{name}": value for name, value in report.environments.items()},
        **({f"role/{report.role}": report.reward} if report.role else {}),
        **{f"trainer/{name}": value for name, value in report.metrics.items()},
        **{f"seconds/{name}": value for name, value in report.seconds.items()},
        **{f"messages/{name}": float(value) for name, value in report.outcomes.items()},
        **{f"scoring/{name}": float(value) for name, value in report.counters.items()},
        "rollouts/tokens": float(report.tokens),
        "rollouts/mean_length": report.tokens / report.rollouts if report.rollouts else float("nan"),
        "rollouts/truncated_share": report.truncated_share,
        "rollouts/zero_advantage_share": report.zero_advantage_share,
        "rollouts/turns": report.turns,
        "swarm/members": float(len(report.members)),
        "swarm/missing": float(len(report.missing)),
        "swarm/external_groups": float(sum(report.external.values())),
        "swarm/bytes_sent": float(report.bytes_sent),
        "swarm/bytes_received": float(report.bytes_received),
        "policy_version": float(report.policy_version),
    }
    found = [(report.round, report.first_evaluation), (report.round + 1, report.evaluation)]
    evaluations = [(step, _numbers_of(each, "held_out")) for step, each in found if each is not None]
    series = [*evaluations[: report.first_evaluation is not None], (report.round + 1, rounds)]
    series += evaluations[report.first_evaluation is not None :]
    return [(step, {name: value for name, value in values.items() if value - value == 0}) for step, values in series]


def _numbers_of(evaluation: Evaluation, prefix: str) -> dict[str, float]:
    found = {f"{prefix}/{name}": value for name, value in evaluation.average.items()}
    found |= {f"{prefix}_error/{name}": value for name, value in evaluation.errors.items()}
    found |= {f"{prefix}/stage_{stage}": value for stage, value in enumerate(evaluation.stages)}
    found |= {f"{prefix}/pass_at_{k}": value for k, value in evaluation.pass_at.items()}
    return found if evaluation.sampled is None else found | _numbers_of(evaluation.sampled, f"{prefix}_sampled")
