"""`swarmgame peers`: which members the peers of a running run count, how much of each they use, and why not more."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from swarmgame.cli.options import Run, Runs, find_run
from swarmgame.errors import Temporary
from swarmgame.observability.author_totals import AuthorTotal
from swarmgame.observability.text import counted

WHY: Mapping[str, str] = {
    "anchor": "started together, named by --anchor, or admitted by a list or a chain",
    "counted": "has delivered the last rounds",
    "provisional": "was here before the first stage closed, or while no other member counted",
    "probation": "has not delivered enough complete rounds in a row yet",
    "missed": "was waited for in vain, or came too late; counts again after complete rounds",
    "same-address": "enough members of its address count already",
    "no-member": "no member now; others passed on its rollouts, or it has left",
}
NO_MEMBER = "no-member"


def peers(
    run: Run,
    runs: Runs = Path("runs"),
    json_: Annotated[bool, typer.Option("--json", help="One JSON object for each member of each peer.")] = False,
) -> None:
    """Show which members each peer of a running run counts for its quorum and its round, and why; how many of their
    groups it has trained on since it began, with their mean share of an update; and what it refused, by reason.

    [bold]Examples[/bold]

      swarmgame peers quickstart

      swarmgame peers quickstart --json | jq 'select(.counts | not)'
    """
    from swarmgame.observability.peer_progress import PeerProgress

    directory = find_run(run, runs)
    found = {}
    for index, files in directory.peers().items():
        progress = PeerProgress(index, files)
        progress.fetch_status()
        if progress.status:
            found[index] = progress.status
    if not found:
        raise Temporary(f"no peer of the run {directory.root.name} answers: it is over, or has not begun")
    for index, status in found.items():
        rows = members_of(index, status)
        if json_:
            for row in rows:
                typer.echo(json.dumps(row))
            continue
        typer.echo(f"peer {index}, round {int(status['round']) + 1}: {_sum(rows, len(status['members']) - 1)}")
        for row in rows:
            sign = "counts" if row["counts"] else "does not count"
            late = ", missing in the last stage" if row["missing"] else ""
            use = f"{_used(row):<24}  {row['why']}{late}{_refused(row)}"
            typer.echo(f"  …{row['member'][-6:]}  {sign:<14}  {row['standing']:<12}  {use}")


def members_of(index: int, status: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the other members of one peer, from its status, those that count first, and then the authors of rollouts
    that are no members.
    """
    from swarmgame.swarm.counted_peers import COUNTING

    authors = status.get("authors", {})
    known = {*status["standings"], *status["members"]}
    strangers = [author for author in authors if author not in known]
    return [
        {
            "peer": index,
            "member": member,
            "counts": standing in COUNTING,
            "standing": standing,
            "why": WHY.get(standing, ""),
            "missing": member in status["missing"],
            **(authors.get(member) or AuthorTotal(member).as_json()),
        }
        for member, standing in (*status["standings"].items(), *((author, NO_MEMBER) for author in strangers))
    ]


def _used(row: Mapping[str, Any]) -> str:
    share = "" if row["influence"] is None else f", {row['influence']:.1%} of updates"
    return f"{counted(row['groups'], 'group')} used{share}"


def _refused(row: Mapping[str, Any]) -> str:
    reasons = ", ".join(f"{reason} {count}" for reason, count in row["refused"].items())
    return f"; refused: {reasons}" if reasons else ""


def _sum(rows: list[dict[str, Any]], others: int) -> str:
    rows = [row for row in rows if row["standing"] != NO_MEMBER]
    counting = sum(row["counts"] for row in rows)
    more = f"; {others - len(rows)} more are not shown" if others > len(rows) else ""
    return f"{counting} of {max(others, len(rows))} other members count{more}"
