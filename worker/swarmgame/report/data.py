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
    tokens_per_second,
)
from swarmgame.observability.run_directory import RunDirectory

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
        first10, last10, rise: mean reward over peers at both ends, and the difference; None when nothing was scored.
        seconds: in rounds, of the slowest peer.
        tokens: sampled by all peers.
        external: groups of other peers that were trained on, by all peers.
        evaluation: mean reward of the last evaluation over all environments; None without one.
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
    tokens: int
    external: int
    evaluation: float | None
    participation: tuple[Participation, ...] = ()
    chain: Mapping[str, Any] | None = None

    def as_json(self) -> dict[str, Any]:
        found = asdict(self) | {"participation": [part.as_json() for part in self.participation]}
        if self.chain is None:
            del found["chain"]
        return found

    @property
    def sentence(self) -> str:
        """The change of the reward, for a terminal; empty when nothing was scored."""
        if self.first10 is None or self.last10 is None or self.rise is None:
            return ""
        ends = "round" if self.window == 1 else f"{self.window} rounds"
        return f"mean reward: first {ends} {self.first10:.3f}, last {ends} {self.last10:.3f}, rise {self.rise:+.3f}"


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
        self.names = {_id_of(peer): f"peer {peer.index}" for peer in self.peers}
        self.warnings = read_all({index: files.warnings for index, files in directory.peers().items()})
        self.rounds = sorted({played for peer in self.peers for played in peer.rounds})

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
            trained_on[_id_of(peer)] = total
        return trained_on

    def summary(self) -> Summary:
        rewards = list(mean_rewards(self.peers).values())
        window = min(ENDS, max(1, len(rewards) // 2))
        first = fmean(rewards[:window]) if rewards else None
        last = fmean(rewards[-window:]) if rewards else None
        evaluations = list(self.mean(lambda line: number(line, "evaluation", "average", "all")).values())
        return Summary(
            name=self.name,
            peers=len(self.peers),
            rounds=len(self.rounds),
            window=window,
            first10=first,
            last10=last,
            rise=None if first is None or last is None else last - first,
            seconds=max(_total(peer.rounds.values(), "seconds", "round") for peer in self.peers),
            tokens=int(sum(_total(peer.rounds.values(), "tokens") for peer in self.peers)),
            external=sum(sum(authors.values()) for authors in self.trained_on().values()),
            evaluation=evaluations[-1] if evaluations else None,
            participation=participation(self.peers),
            chain=self.chain,
        )

    def peer_rows(self) -> list[dict[str, Any]]:
        """Return one row a peer, for the table."""
        rows = []
        for peer, part in zip(self.peers, participation(self.peers), strict=True):
            rewards = [value for value in peer.rewards if value is not None]
            window = min(ENDS, max(1, len(rewards) // 2))
            lines = peer.rounds.values()
            rows.append(
                {
                    "name": f"peer {peer.index}",
                    "id": _id_of(peer),
                    "rounds": part.played,
                    "skipped": sum(part.skipped.values()),
                    "late": part.left_out,
                    "first": fmean(rewards[:window]) if rewards else None,
                    "last": fmean(rewards[-window:]) if rewards else None,
                    "tokens": int(_total(lines, "tokens")),
                    "tokens_per_second": mean(tokens_per_second(line) for line in lines),
                    "exchange_ms": _milliseconds(mean(number(line, "seconds", "exchange") for line in lines)),
                    "sent": int(_total(lines, "bytes_sent")),
                    "received": int(_total(lines, "bytes_received")),
                    "external": int(sum(sum(numbers(line, "external").values()) for line in lines)),
                    "missing": sum(len(line.get("missing") or ()) for line in lines),
                    "alone": sum(line.get("closed_by") == "alone" for line in lines),
                }
            )
        return rows


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


def _id_of(peer: PeerProgress) -> str:
    return str((peer.last or {}).get("peer") or f"peer-{peer.index}")


def _total(lines: Iterable[Line], *path: str) -> float:
    return sum(number(line, *path) or 0.0 for line in lines)


def _milliseconds(seconds: float | None) -> float | None:
    return None if seconds is None else seconds * 1000
