"""The tables of the report, as plain rows; formatting is the template's.

Invariant: names of peers, environments and outcomes are data from elsewhere, and stay unescaped here.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from swarmgame.observability.author_totals import AuthorTotal, AuthorTotals
from swarmgame.observability.diagnostics.outcomes import OUTCOMES
from swarmgame.observability.peer_progress import mean, number, numbers, tokens_per_second
from swarmgame.report.data import PHASES, RunData, id_of, total_of, window_of
from swarmgame.report.plots_of_training import SHOWN_ELSEWHERE, STANDARD
from swarmgame.report.results import Change, HeldOut, held_out_of, rewards_at_ends, stage_reward

_VARIABLE = re.compile(r"peers\.env\[\d+\]\.value")


@dataclass(frozen=True)
class ResultRow:
    """One row of the results: over everything, an environment, a stage or a role.

    Args:
        group: heading under which it stands; empty for the first row.
        held_out: at the first and the last evaluation.
        reward: of training, in the first and in the last rounds.
    """

    group: str
    name: str
    held_out: Change
    reward: Change


def result_rows(run: RunData, held_out: HeldOut | None) -> list[ResultRow]:
    """Return rewards and held-out scores by environment, stage and role; one row where there is only one of each."""

    def at(pick: Any) -> Change:
        return rewards_at_ends(run.peers, pick, window_of(len(run.rounds)))

    nothing = Change()
    rows = [ResultRow("", "all", held_out.total if held_out else nothing, at(lambda line: number(line, "reward")))]
    names = sorted({*run.names_under("environments"), *(held_out.environments if held_out else ())})
    for name in names if len(names) > 1 else ():
        reward = at(lambda line, name=name: number(line, "environments", name))
        rows.append(
            ResultRow("environment", name, held_out.environments.get(name, nothing) if held_out else nothing, reward)
        )
    for stage in range(run.stages) if run.stages > 1 else ():
        known = held_out is not None and stage < len(held_out.stages)
        evaluated = held_out.stages[stage] if held_out is not None and known else nothing
        rows.append(
            ResultRow("stage", f"stage {stage}", evaluated, at(lambda line, stage=stage: stage_reward(line, stage)))
        )
    for role in run.roles:
        reward = at(lambda line, role=role: number(line, "reward") if line.get("role") == role else None)
        evaluated = held_out.roles.get(role, nothing) if held_out is not None else nothing
        rows.append(ResultRow("role", role, evaluated, reward))
    return rows


def peer_rows(run: RunData) -> list[dict[str, Any]]:
    """Return one row a peer."""
    rows = []
    for peer in run.peers:
        lines = list(peer.rounds.values())
        roles = sorted({str(line.get("role") or "") for line in lines} - {""})
        rewards = rewards_at_ends([peer], lambda line: number(line, "reward"), window_of(len(lines)))
        exchange = mean(number(line, "seconds", "exchange") for line in lines)
        held_out = held_out_of([peer])
        rows.append(
            {
                "name": f"peer {peer.index}",
                "id": id_of(peer),
                "role": ", ".join(roles),
                "rounds": len(lines),
                "skipped": max(len(run.rounds) - len(lines), 0),
                "held_out": held_out.total if held_out else Change(),
                "reward": rewards,
                "tokens_per_second": mean(tokens_per_second(line) for line in lines),
                "exchange_ms": None if exchange is None else exchange * 1000,
                "sent": int(total_of(lines, "bytes_sent")),
                "received": int(total_of(lines, "bytes_received")),
                "external": int(sum(sum(numbers(line, "external").values()) for line in lines)),
                "missing": sum(len(line.get("missing") or ()) for line in lines),
                "alone": sum(line.get("closed_by") == "alone" for line in lines),
            }
        )
    return rows


def time_rows(run: RunData) -> list[tuple[str, float, float]]:
    """Return (phase, mean seconds a round, share of the round), the longest first, and what is left as `other`."""
    total = _mean_of(run, "round")
    found = {part: seconds for part in PHASES if (seconds := _mean_of(run, part))}
    if not total:
        return []
    rest = total - sum(seconds for part, seconds in found.items() if part != "checkpoint")
    rows = [*sorted(found.items(), key=lambda pair: -pair[1]), ("other", max(rest, 0.0))]
    return [(part, seconds, seconds / total) for part, seconds in rows]


def metric_rows(run: RunData) -> list[tuple[str, float, float, float, float]]:
    """Return (name, first, last, lowest, highest) of every number of the trainer, as means over the peers.

    The policy's numbers come first, then the trainer's own by name.
    """
    picks = [*STANDARD]
    for name in run.names_under("metrics"):
        if name not in SHOWN_ELSEWHERE:
            picks.append((name, lambda line, name=name: number(line, "metrics", name)))  # type: ignore[misc]
    rows = []
    for title, pick in picks:
        values = list(run.mean(pick).values())
        window = window_of(len(values))
        if values:
            rows.append((title, fmean(values[:window]), fmean(values[-window:]), min(values), max(values)))
    return rows


def outcome_rows(run: RunData) -> list[tuple[str, int, str]]:
    """Return (outcome, count, meaning), the most frequent first."""
    counts = sorted(run.totals("outcomes").items(), key=lambda pair: -pair[1])
    return [(name, count, OUTCOMES[name].meaning if name in OUTCOMES else "") for name, count in counts]


@dataclass(frozen=True)
class AuthorRow:
    """How the peers of the run used the rollouts of one author.

    Args:
        name: of a peer of this run; empty for an author from elsewhere.
    """

    name: str
    total: AuthorTotal


def author_rows(run: RunData, most: int = 50) -> list[AuthorRow]:
    """Return the authors of rollouts of other peers, those with most refusals first; at most `most`."""
    names = {id_of(peer): f"peer {peer.index}" for peer in run.peers}
    totals = AuthorTotals()
    for line in (line for peer in run.peers for line in peer.rounds.values()):
        authors = line.get("refused")
        known = authors if isinstance(authors, Mapping) else ()
        refused = {str(author): _counts(line, "refused", author) for author in known}
        totals.add(_counts(line, "external"), numbers(line, "influence"), refused)
    return [AuthorRow(names.get(total.author, ""), total) for total in totals.rows(most)]


def _counts(line: Mapping[str, Any], *path: str) -> dict[str, int]:
    return {name: int(count) for name, count in numbers(line, *path).items()}


def option_rows(options: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return every option of the manifest as (path, value), in order; values of variables of the pods stay hidden."""
    return [
        (path, "(hidden)" if _VARIABLE.fullmatch(path) else value)
        for path, value in _leaves(options.get("spec", options), "")
    ]


def _leaves(value: Any, path: str) -> Iterator[tuple[str, str]]:
    if isinstance(value, Mapping) and value:
        for key, entry in value.items():
            yield from _leaves(entry, f"{path}.{key}" if path else str(key))
    elif isinstance(value, Sequence) and not isinstance(value, str) and any(isinstance(e, Mapping) for e in value):
        for number_, entry in enumerate(value):
            yield from _leaves(entry, f"{path}[{number_}]")
    else:
        yield path, _shown(value)


def _shown(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, Sequence) and not isinstance(value, str):
        return "[" + ", ".join(map(_shown, value)) + "]"
    return "{}" if isinstance(value, Mapping) else str(value) if value != "" else '""'


def _mean_of(run: RunData, part: str) -> float | None:
    return mean(number(line, "seconds", part) for peer in run.peers for line in peer.rounds.values())
