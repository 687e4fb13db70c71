"""Tables of games and peers, from plain objects. Pure.

Missing values are shown as a dash. Invariant: text from pods and users is never interpreted as markup.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from swarmgame_operator import snapshot_builder

COLORS = {"True": "green", "False": "yellow", "Unknown": "dim"}
Object = Mapping[str, Any]


def games(found: Iterable[Object], now: datetime) -> Table:
    """Return a table with a line per game."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in ("NAMESPACE", "NAME", "READY", "REASON", "PEERS", "ROUND", "REWARD", "AGE"):
        table.add_column(column, justify="right" if column in ("PEERS", "ROUND", "REWARD", "AGE") else "left")
    for game in sorted(found, key=lambda each: (each["metadata"]["namespace"], each["metadata"]["name"])):
        metadata, status = game["metadata"], game.get("status") or {}
        ready, over = _condition(status, "Ready"), _over(status)
        peers, progress = status.get("peers") or {}, status.get("progress") or {}
        table.add_row(
            Text(metadata["namespace"]),
            Text(metadata["name"]),
            Text(ready.get("status", "-"), style=COLORS.get(ready.get("status", ""), "")),
            Text((over or ready).get("reason", "-")),
            Text(f"{peers.get('ready', 0)}/{peers.get('desired', 0)}"),
            Text(f"{progress.get('round', 0)}/{progress.get('maxRounds', '-')}"),
            Text(_metric(progress, "reward")),
            Text(age(metadata.get("creationTimestamp"), now)),
        )
    return table


def game(found: Object, pods: Iterable[Object], now: datetime) -> RenderableType:
    """Return one game in full: progress, conditions, peers."""
    metadata, status = found["metadata"], found.get("status") or {}
    progress = status.get("progress") or {}
    head = Text.assemble(
        (f"{metadata['namespace']}/{metadata['name']}", "bold"), f"  {age(metadata.get('creationTimestamp'), now)} old"
    )
    done, left = int(progress.get("percentage") or 0), progress.get("estimatedRemainingSeconds")
    bar = Text.assemble(("━" * (done * 40 // 100), "green"), ("━" * (40 - done * 40 // 100), "dim"))
    line = f"  round {progress.get('round', 0)} of {progress.get('maxRounds', '-')}" + (
        f", {duration(left)} left" if left else ""
    )
    parts: list[RenderableType] = [head, Text.assemble(bar, line)]
    figures = ", ".join(f"{each['name']} {each['value']}" for each in progress.get("metrics") or ())
    if figures:
        parts.append(Text(figures))
    if address := (status.get("bootnode") or {}).get("address"):
        parts.append(Text(f"join with --initial-peer {address}"))
    conditions = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in ("CONDITION", "STATUS", "REASON", "SINCE", "MESSAGE"):
        conditions.add_column(column, overflow="fold")
    for each in status.get("conditions") or ():
        since = age(each.get("lastTransitionTime"), now)
        shown = Text(each["status"], style=COLORS.get(each["status"], ""))
        conditions.add_row(Text(each["type"]), shown, Text(each["reason"]), Text(since), Text(each.get("message", "")))
    return Group(*parts, conditions, peers(pods, status, now))


def peers(pods: Iterable[Object], status: Object, now: datetime) -> Table:
    """Return a table with a line per peer's pod, with its problem."""
    unhealthy = {each["index"]: each for each in status.get("unhealthyPeers") or ()}
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in ("PEER", "POD", "PHASE", "READY", "RESTARTS", "IP", "AGE", "PROBLEM"):
        table.add_column(column, overflow="fold")
    for body in sorted(
        pods, key=lambda each: (snapshot_builder.pod_facts(each).facts.index or 0, each["metadata"]["name"])
    ):
        found = snapshot_builder.pod_facts(body)
        problem = unhealthy.get(found.facts.index, {})
        message = f"{problem['reason']}: {problem.get('message', '')}" if problem else ""
        table.add_row(
            Text("-" if found.facts.index is None else str(found.facts.index)),
            Text(found.facts.name),
            Text("Terminating" if found.facts.terminating else found.facts.phase),
            Text("yes" if found.facts.ready else "no", style="green" if found.facts.ready else "yellow"),
            Text(str(sum(each.restarts for each in found.facts.containers))),
            Text(found.ip or "-"),
            Text(age(body["metadata"].get("creationTimestamp"), now)),
            Text(message),
        )
    return table


def age(since: object, now: datetime) -> str:
    """Return the age in kubectl's format: 42s, 5m, 3h, 12d."""
    when = snapshot_builder.time_of(since)
    return "-" if when is None else duration((now - when).total_seconds())


def duration(seconds: float) -> str:
    total = max(0, int(seconds))
    for unit, size in (("d", 86_400), ("h", 3600), ("m", 60)):
        if total >= 2 * size:
            return f"{total // size}{unit}"
    return f"{total}s"


def _condition(status: Object, kind: str) -> Object:
    return next((each for each in status.get("conditions") or () if each.get("type") == kind), {})


def _over(status: Object) -> Object:
    return next(
        (each for kind in ("Complete", "Failed") if (each := _condition(status, kind)).get("status") == "True"), {}
    )


def _metric(progress: Object, name: str) -> str:
    return next((str(each["value"]) for each in progress.get("metrics") or () if each["name"] == name), "-")
