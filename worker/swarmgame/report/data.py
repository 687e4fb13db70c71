"""The numbers of a run, as plots and tables need them.

Reads the folder of a run. Invariant: all numbers come from the lines of finished rounds (`metrics.jsonl`); a missing
number stays missing and does not become zero.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import Any

import yaml

from swarmgame.errors import BadData
from swarmgame.observability.diagnostics.files import read_all
from swarmgame.observability.participation import Participation, participation
from swarmgame.observability.peer_progress import (
    Line,
    PeerProgress,
    mean,
    mean_rewards,
    number,
    numbers,
)
from swarmgame.observability.run_directory import RunDirectory
from swarmgame.report.results import Change, HeldOut, evaluations_of, held_out_of

ENDS = 10
PHASES = ("data", "generate", "exchange", "listen", "rewards", "train", "evaluate", "checkpoint")
Series = dict[int, float]
"""A number by round, in the order of rounds."""


@dataclass(frozen=True)
class Summary:
    """The result of a run in a few numbers: `summary.json`.

    Args:
        rounds: number of rounds that at least one peer finished.
        window: number of rounds in the means `first10` and `last10`: 10, or half of the rounds if there are fewer than
            20.
        first10, last10, rise: mean reward of the peers' own rollouts at both ends, as sampled for training, and the
            difference; None when nothing was scored. A policy that only becomes more certain raises it too.
        seconds: in rounds, of the slowest peer.
        wall_seconds: of all starts of the run, preparation included; None where no runner measured it.
        tokens: sampled by all peers.
        external: groups of other peers that were trained on, by all peers.
        evaluation: mean reward of the last evaluation over all environments; None without one.
        held_out: the first and the last evaluation, with standard errors; None without one.
        temperature: of training rollouts, where the trainer has that option.
        participation: rounds that each peer played, left out and was too late in.
        chain: last state of the run's chain (round, proven, reports, …); None, and not in the file, without one.
    """

    name: str
    peers: int
    rounds: int
    window: int
    first10: float | None
    last10: float | None
    rise: float | None
    seconds: float
    wall_seconds: float | None
    tokens: int
    external: int
    evaluation: float | None
    held_out: HeldOut | None
    temperature: float | None = None
    participation: tuple[Participation, ...] = ()
    chain: Mapping[str, Any] | None = None

    def as_json(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(json.dumps(asdict(self), default=str))
        found["participation"] = [part.as_json() for part in self.participation]
        if self.chain is None:
            del found["chain"]
        if self.held_out is not None:
            found["held_out"]["total"]["difference"] = self.held_out.total.difference
        return found

    @property
    def sentences(self) -> list[str]:
        """The result in one or two sentences, for a terminal; empty when nothing was scored or evaluated."""
        found = []
        if self.held_out is not None:
            found.append(_held_out_sentence(self.held_out))
            if self.held_out.roles:
                found.append(f"held-out, by the role of the peers: {_by_role(self.held_out.roles)}")
        if self.first10 is not None and self.last10 is not None and self.rise is not None:
            ends = "round" if self.window == 1 else f"{self.window} rounds"
            how = "" if self.temperature is None else f" at temperature {self.temperature:g}"
            found.append(
                f"training reward{how}: first {ends} {self.first10:.3f}, last {ends} {self.last10:.3f}, "
                f"rise {self.rise:+.3f}"
            )
        return found


def _held_out_sentence(held_out: HeldOut) -> str:
    total = held_out.total
    questions = f"{held_out.questions} held-out questions" if held_out.questions else "held-out questions"
    if total.difference is None:
        return f"{questions}: {_with_error(total.last, total.last_error)} after {held_out.last_round} rounds"
    before = "before training" if held_out.first_round == 0 else f"after {held_out.first_round} rounds"
    return (
        f"{questions}: {_with_error(total.first, total.first_error)} {before} → "
        f"{_with_error(total.last, total.last_error)} after {held_out.last_round} rounds, "
        f"change {_with_error(total.difference, total.error, '+.3f')} (± standard error)"
    )


def _by_role(roles: Mapping[str, Change]) -> str:
    return ", ".join(
        f"{role} {_with_error(each.last, each.last_error)}"
        if each.difference is None
        else f"{role} {_with_error(each.first, None)} → {_with_error(each.last, None)} "
        f"(change {_with_error(each.difference, each.error, '+.3f')})"
        for role, each in roles.items()
    )


def _with_error(value: float | None, error: float | None, form: str = ".3f") -> str:
    shown = "–" if value is None else format(value, form)
    return shown if error is None else f"{shown} ± {error:.3f}"


class RunData:
    """The lines of finished rounds of all peers of a run.

    Raises:
        BadData: no peer has finished a round yet.
    """

    def __init__(self, directory: RunDirectory) -> None:
        self.name = directory.root.name
        self.chain = _chain_of(directory)
        all_peers = [PeerProgress(index, files) for index, files in directory.peers().items()]
        for peer in all_peers:
            peer.refresh()
        self.peers = [peer for peer in all_peers if peer.rounds]
        if not self.peers:
            raise BadData(f"{directory.root} holds no finished round yet; there is nothing to report")
        self.names = {id_of(peer): f"peer {peer.index}" for peer in self.peers}
        self.warnings = read_all({index: files.warnings for index, files in directory.peers().items()})
        self.rounds = sorted({played for peer in self.peers for played in peer.rounds})
        self.options = _options_of(directory)
        progress = directory.progress()
        self.wall_seconds = progress.seconds if progress is not None and progress.seconds else None

    def name_of(self, peer_id: str) -> str:
        """Return a name for people: the number of a peer of this run, or else the end of its id."""
        return self.names.get(peer_id) or f"…{peer_id[-6:]}"

    def of(self, peer: PeerProgress, pick: Callable[[Line], float | None]) -> Series:
        """Return one peer's numbers by round."""
        return {played: value for played, line in peer.rounds.items() if (value := pick(line)) is not None}

    def mean(self, pick: Callable[[Line], float | None]) -> Series:
        """Return the mean over the peers that have the number, by round."""
        found = (
            (played, mean(pick(p.rounds[played]) for p in self.peers if played in p.rounds)) for played in self.rounds
        )
        return {played: value for played, value in found if value is not None}

    def names_under(self, *path: str) -> list[str]:
        """Return all keys of a mapping in the lines, sorted."""
        return sorted({name for peer in self.peers for line in peer.rounds.values() for name in numbers(line, *path)})

    def totals(self, *path: str) -> Counter[str]:
        """Return the sum of a mapping of counts over rounds and peers."""
        total: Counter[str] = Counter()
        for peer in self.peers:
            for line in peer.rounds.values():
                total.update({name: int(value) for name, value in numbers(line, *path).items()})
        return total

    def counters(self) -> Counter[str]:
        """Return the running totals of the rewards, summed over the peers' last rounds."""
        total: Counter[str] = Counter()
        for peer in self.peers:
            total.update({name: int(value) for name, value in numbers(peer.last, "counters").items()})
        return total

    def trained_on(self) -> Mapping[str, Counter[str]]:
        """Return, for each peer of the run by id, the number of groups of each author that it trained on."""
        trained_on: dict[str, Counter[str]] = {}
        for peer in self.peers:
            total: Counter[str] = Counter()
            for line in peer.rounds.values():
                total.update({author: int(count) for author, count in numbers(line, "external").items()})
            trained_on[id_of(peer)] = total
        return trained_on

    def summary(self) -> Summary:
        rewards = list(mean_rewards(self.peers).values())
        window = window_of(len(rewards))
        first = fmean(rewards[:window]) if rewards else None
        last = fmean(rewards[-window:]) if rewards else None
        held_out = held_out_of(self.peers)
        seconds = max(total_of(peer.rounds.values(), "seconds", "round") for peer in self.peers)
        return Summary(
            name=self.name,
            peers=len(self.peers),
            rounds=len(self.rounds),
            window=window,
            first10=first,
            last10=last,
            rise=None if first is None or last is None else last - first,
            seconds=seconds,
            tokens=int(sum(total_of(peer.rounds.values(), "tokens") for peer in self.peers)),
            external=sum(sum(authors.values()) for authors in self.trained_on().values()),
            evaluation=None if held_out is None else held_out.total.last,
            held_out=held_out,
            # A run that goes on after a resume has not counted its present start yet.
            wall_seconds=self.wall_seconds if self.wall_seconds and self.wall_seconds >= seconds else None,
            temperature=number(_mapping_at(self.options, "spec", "game", "trainer", "with"), "temperature"),
            participation=participation(self.peers, self.warnings),
            chain=self.chain,
        )

    def evaluated(self, *path: str) -> Series:
        """Return the mean over peers of a number of the evaluations, by finished rounds."""
        by_round: dict[int, list[float]] = {}
        for peer in self.peers:
            for played, evaluation in evaluations_of(peer.rounds.values()).items():
                if (value := number(evaluation, *path)) is not None:
                    by_round.setdefault(played, []).append(value)
        return {played: fmean(by_round[played]) for played in sorted(by_round)}

    @property
    def stages(self) -> int:
        """Number of stages of a round, as far as the lines show."""
        return max((len(line.get("stage_rewards") or ()) for p in self.peers for line in p.rounds.values()), default=0)

    @property
    def roles(self) -> list[str]:
        """The roles that any peer had, sorted; empty where the game has none."""
        return sorted({str(line.get("role") or "") for p in self.peers for line in p.rounds.values()} - {""})


def window_of(rounds: int) -> int:
    """Return the number of rounds at each end whose rewards are compared."""
    return min(ENDS, max(1, rounds // 2))


def smoothed(series: Series, width: int) -> Series:
    """Return the centred moving mean over `width` rounds, narrower at the ends."""
    rounds, values = list(series), list(series.values())
    half = width // 2
    return {played: fmean(values[max(0, i - half) : i + half + 1]) for i, played in enumerate(rounds)}


def _chain_of(directory: RunDirectory) -> Mapping[str, Any] | None:
    try:
        found = json.loads(directory.chain_standing.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def _options_of(directory: RunDirectory) -> Mapping[str, Any]:
    """Return the manifest with every default, as the first peer used it; without it the manifest alone."""
    for path in (*(peer.options for peer in directory.peers().values()), directory.manifest):
        try:
            found = yaml.safe_load(path.read_text(encoding="utf-8"))
        except (OSError, yaml.YAMLError):
            continue
        if isinstance(found, dict):
            return found
    return {}


def _mapping_at(data: Any, *path: str) -> Mapping[str, Any]:
    for key in path:
        data = data.get(key) if isinstance(data, Mapping) else None
    return data if isinstance(data, Mapping) else {}


def id_of(peer: PeerProgress) -> str:
    return str((peer.last or {}).get("peer") or f"peer-{peer.index}")


def total_of(lines: Iterable[Line], *path: str) -> float:
    return sum(number(line, *path) or 0.0 for line in lines)
