"""A run as numbers: what the peers wrote, in the shape that plots and tables want.

Reads a run's folder, draws nothing. Invariant: everything is taken from the accounts of finished rounds; what is
missing is missing, never zero.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import Any

from swarmgame.errors import BadData
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
PARTS = ("data", "generate", "exchange", "listen", "rewards", "train", "evaluate", "checkpoint")
Series = dict[int, float]
"""A number by round, in order of rounds."""


@dataclass(frozen=True)
class Summary:
    """What a run came to, in a few numbers; `summary.json`.

    Args:
        rounds: that at least one peer finished.
        window: how many rounds `first10` and `last10` are means of: 10, or half of the rounds when there are fewer than
            20.
        first10, last10, rise: mean reward over peers at either end, and the difference; None when nothing was scored.
        seconds: spent in rounds, by the slowest peer.
        tokens: sampled by all peers.
        external: groups of others that were trained on, by all peers.
        evaluation: mean reward of the last evaluation over all environments; None without one.
        chain: what the run's chain said last (round, proven, reports, …); None, and left out of the file, without one.
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
    chain: Mapping[str, Any] | None = None

    def as_json(self) -> dict[str, Any]:
        found = asdict(self)
        if self.chain is None:
            del found["chain"]
        return found

    @property
    def sentence(self) -> str:
        """What was learnt, for a terminal; empty when nothing was scored."""
        if self.first10 is None or self.last10 is None or self.rise is None:
            return ""
        ends = "round" if self.window == 1 else f"{self.window} rounds"
        return f"mean reward: first {ends} {self.first10:.3f}, last {ends} {self.last10:.3f}, rise {self.rise:+.3f}"


class RunData:
    """The accounts of all peers of a run.

    Raises:
        BadData: no peer has finished a round yet.
    """

    def __init__(self, directory: RunDirectory) -> None:
        self.name = directory.root.name
        self.chain = _chain_of(directory)
        everyone = [PeerProgress(index, files) for index, files in directory.peers().items()]
        for peer in everyone:
            peer.refresh()
        self.peers = [peer for peer in everyone if peer.rounds]
        if not self.peers:
            raise BadData(f"{directory.root} holds no finished round yet; there is nothing to report")
        self.names = {_id_of(peer): f"peer {peer.index}" for peer in self.peers}
        self.rounds = sorted({played for peer in self.peers for played in peer.rounds})

    def name_of(self, peer_id: str) -> str:
        """A peer as people know it: by its number, or by the end of its id when it is not one of this run's."""
        return self.names.get(peer_id) or f"…{peer_id[-6:]}"

    def of(self, peer: PeerProgress, pick: Callable[[Line], float | None]) -> Series:
        """One peer's numbers by round."""
        return {played: value for played, account in peer.rounds.items() if (value := pick(account)) is not None}

    def mean(self, pick: Callable[[Line], float | None]) -> Series:
        """The mean over the peers that have the number, by round."""
        found = (
            (played, mean(pick(p.rounds[played]) for p in self.peers if played in p.rounds)) for played in self.rounds
        )
        return {played: value for played, value in found if value is not None}

    def names_under(self, *path: str) -> list[str]:
        """All names that occur in a mapping of the accounts, sorted."""
        return sorted(
            {name for peer in self.peers for account in peer.rounds.values() for name in numbers(account, *path)}
        )

    def totals(self, *path: str) -> Counter[str]:
        """The sum over rounds and peers of a mapping of counts."""
        total: Counter[str] = Counter()
        for peer in self.peers:
            for account in peer.rounds.values():
                total.update({name: int(value) for name, value in numbers(account, *path).items()})
        return total

    def counters(self) -> Counter[str]:
        """The rewards' own running totals, as of each peer's last round, added up."""
        total: Counter[str] = Counter()
        for peer in self.peers:
            total.update({name: int(value) for name, value in numbers(peer.last, "counters").items()})
        return total

    def learnt_from(self) -> Mapping[str, Counter[str]]:
        """For each peer of the run, by id: how many groups of each author it trained on."""
        learnt: dict[str, Counter[str]] = {}
        for peer in self.peers:
            total: Counter[str] = Counter()
            for account in peer.rounds.values():
                total.update({author: int(count) for author, count in numbers(account, "external").items()})
            learnt[_id_of(peer)] = total
        return learnt

    def summary(self) -> Summary:
        rewards = list(mean_rewards(self.peers).values())
        window = min(ENDS, max(1, len(rewards) // 2))
        first = fmean(rewards[:window]) if rewards else None
        last = fmean(rewards[-window:]) if rewards else None
        evaluations = list(self.mean(lambda account: number(account, "evaluation", "average", "all")).values())
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
            external=sum(sum(authors.values()) for authors in self.learnt_from().values()),
            evaluation=evaluations[-1] if evaluations else None,
            chain=self.chain,
        )

    def peer_rows(self) -> list[dict[str, Any]]:
        """One row a peer, for the table."""
        rows = []
        for peer in self.peers:
            rewards = [value for value in peer.rewards if value is not None]
            window = min(ENDS, max(1, len(rewards) // 2))
            accounts = peer.rounds.values()
            rows.append(
                {
                    "name": f"peer {peer.index}",
                    "id": _id_of(peer),
                    "rounds": len(peer.rounds),
                    "first": fmean(rewards[:window]) if rewards else None,
                    "last": fmean(rewards[-window:]) if rewards else None,
                    "tokens": int(_total(accounts, "tokens")),
                    "tokens_per_second": mean(tokens_per_second(account) for account in accounts),
                    "exchange_ms": _thousandfold(mean(number(account, "seconds", "exchange") for account in accounts)),
                    "sent": int(_total(accounts, "bytes_sent")),
                    "received": int(_total(accounts, "bytes_received")),
                    "external": int(sum(sum(numbers(account, "external").values()) for account in accounts)),
                    "missing": sum(len(account.get("missing") or ()) for account in accounts),
                    "alone": sum(account.get("closed_by") == "alone" for account in accounts),
                }
            )
        return rows


def smoothed(series: Series, width: int) -> Series:
    """Moving mean over `width` rounds, centred, narrower at the ends."""
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


def _total(accounts: Iterable[Line], *path: str) -> float:
    return sum(number(account, *path) or 0.0 for account in accounts)


def _thousandfold(value: float | None) -> float | None:
    return None if value is None else value * 1000
