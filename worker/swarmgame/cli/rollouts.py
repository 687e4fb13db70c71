"""`swarmgame rollouts`: what the peers of a run wrote, and what became of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from swarmgame.cli.options import Run, Runs, find_run, print_message
from swarmgame.errors import BadData, BadUsage

if TYPE_CHECKING:
    from swarmgame.archive.selection import Filter, Row

SHOWN = 10
"""Rollouts on a terminal where no number is given."""

Best = Annotated[int | None, typer.Option("--best", metavar="N", min=1, help="The N with the highest rewards.")]
Worst = Annotated[int | None, typer.Option("--worst", metavar="N", min=1, help="The N with the lowest rewards.")]
Longest = Annotated[int | None, typer.Option("--longest", metavar="N", min=1, help="The N with the most tokens.")]


def rollouts(
    run: Run,
    round: Annotated[
        int | None,
        typer.Option("--round", metavar="R", min=0, help="Of this round. Default: of the last one, or of all for N."),
    ] = None,
    peer: Annotated[
        int | None,
        typer.Option("--peer", metavar="N", min=0, help="Of this peer's archive, with what the peer received."),
    ] = None,
    env: Annotated[str, typer.Option("--env", metavar="NAME", help="Of this environment.")] = "",
    best: Best = None,
    worst: Worst = None,
    longest: Longest = None,
    json_: Annotated[bool, typer.Option("--json", help="One JSON line for each rollout, as on a pipe.")] = False,
    runs: Runs = Path("runs"),
) -> None:
    """Show the rollouts of a run: prompt, text, reward, and how the update used them or why not.

    Without --peer these are the rollouts that each peer generated. A pipe gets one JSON line for each, with all
    columns. Control characters in texts are shown as escapes.

    [bold]Examples[/bold]

      swarmgame rollouts quickstart

      swarmgame rollouts quickstart --env spell_backward --worst 5

      swarmgame rollouts quickstart --peer 1 --round 20

      swarmgame rollouts quickstart --round 20 | jq .text
    """
    from rich.console import Console

    from swarmgame.archive.display import as_json, block
    from swarmgame.archive.selection import Filter

    chosen = [(name, count) for name, count in (("best", best), ("worst", worst), ("longest", longest)) if count]
    archives = _archives(run, runs, peer)
    if round is None and not chosen:
        round = _last_round(archives)
    parts = _select(archives, Filter(round, env, own_only=peer is None), chosen)
    names = _names(_archives(run, runs, None))
    console = Console(highlight=False, markup=False, emoji=False)
    plain = json_ or not console.is_terminal
    for title, found in parts:
        if title and not plain:
            console.print(f"{title} {len(found)}", style="reverse")
        for row in found if plain or chosen else found[:SHOWN]:
            if plain:
                typer.echo(json.dumps(as_json(row)))
            else:
                console.print(block(row, names))
        if not plain and not chosen and len(found) > SHOWN:
            print_message(f"{len(found) - SHOWN:,} more of round {round}: --json shows all")
    if not any(found for _, found in parts):
        print_message("no rollout matches")
    for line in _absences(archives):
        print_message(line)


def _archives(run: str, runs: Path, peer: int | None) -> dict[int, Path]:
    """Return the archives of a run's peers by index, or that of one peer's own folder."""
    from swarmgame.observability.run_directory import PeerDirectory

    own = PeerDirectory(Path(run))
    if own.rollouts.is_dir():
        return {peer or 0: own.rollouts}
    directory = find_run(run, runs)
    peers = directory.peers()
    if peer is not None and peer not in peers:
        raise BadUsage(f"the run {directory.root.name} has no peer {peer}; it has {', '.join(map(str, peers))}")
    found = {index: files.rollouts for index, files in peers.items() if peer in (None, index)}
    if not any(any(folder.glob("round-*.parquet")) for folder in found.values()):
        raise BadData(
            f"{directory.root} holds no rollouts: no round is finished, or spec.observability.rollouts.enabled is false"
        )
    return found


def _last_round(archives: dict[int, Path]) -> int:
    from swarmgame.archive.files import round_files

    return max((file.round for folder in archives.values() for file in round_files(folder)), default=0)


def _select(archives: dict[int, Path], wanted: Filter, chosen: list[tuple[str, int]]) -> list[tuple[str, list[Row]]]:
    """Return the chosen rollouts under a title each; all that match under none."""
    from swarmgame.archive import selection

    rows = list(selection.rows_of(archives, wanted, print_message))
    if not chosen:
        return [("", rows)]
    functions = {"best": selection.best, "worst": selection.worst, "longest": selection.longest}
    return [(name, functions[name](rows, count)) for name, count in chosen]


def _names(archives: dict[int, Path]) -> dict[str, str]:
    from swarmgame.archive.files import round_files
    from swarmgame.archive.reader import load

    names = {}
    for index, folder in archives.items():
        for file in round_files(folder)[-1:]:
            try:
                names[load(file).head["peer"]] = f"peer {index}"
            except BadData:
                continue  # `_select` names the damaged file
    return names


def _absences(archives: dict[int, Path]) -> list[str]:
    """Return a sentence for each archive that does not hold everything."""
    from swarmgame.archive.writer import ArchiveState

    lines = []
    for index, folder in archives.items():
        state = ArchiveState.of(folder)
        if state.dropped_rounds:
            lines.append(
                f"peer {index}: the {state.dropped_rounds:,} oldest rounds were removed, to stay within "
                "spec.observability.rollouts.maxBytes"
            )
        if state.too_large:
            lines.append(
                f"peer {index}: {state.too_large:,} rounds were larger than spec.observability.rollouts.maxBytes"
            )
        if state.off:
            lines.append(f"peer {index}: the archive was switched off: {state.off}")
    return lines
