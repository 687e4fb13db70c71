"""`swarmgame components`: what may stand under `use` in a manifest, and what under `with`.

Tables on a terminal, JSON lines on a pipe. Nothing is made or started.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import Annotated

import typer

from swarmgame.errors import InvalidManifest
from swarmgame_api.validation_messages import did_you_mean

app = typer.Typer(no_args_is_help=True, help="Data, rewards and trainers that a game may use, and their options.")


@app.command("list")
def list_parts(
    markdown: Annotated[bool, typer.Option("--markdown", help="The page docs/reference/components.md.")] = False,
) -> None:
    """Every installed part: built in, or registered by a package of yours under swarmgame.data, swarmgame.rewards or
    swarmgame.trainers.
    """
    from swarmgame.runtime.options import page, registered

    parts = registered()
    if markdown:
        typer.echo(page(parts), nl=False)
    elif not sys.stdout.isatty():
        for part in parts:
            typer.echo(json.dumps({"kind": part.kind, "use": part.use, "summary": part.summary}))
    else:
        _table(
            f"{len(parts)} parts",
            ("kind", "use", "what it is"),
            ((part.kind, part.use, part.summary) for part in parts),
        )


@app.command()
def show(
    name: Annotated[str, typer.Argument(metavar="NAME", help="What stands under `use`.", show_default=False)],
) -> None:
    """The options of a part: what may stand under `with`. A name that several kinds have shows each.

    [bold]Examples[/bold]

      swarmgame components show grpo

      swarmgame components show reasoning-gym
    """
    from swarmgame.runtime.options import names, registered

    parts = registered(name)
    if not parts:
        raise InvalidManifest(
            "NAME", name, f"an installed part{did_you_mean(name, names())}; `swarmgame components list` has them all"
        )
    for part in parts:
        if not sys.stdout.isatty():
            typer.echo(json.dumps(asdict(part)))
            continue
        rows = ((option.path, option.takes, option.default, option.meaning) for option in part.options)
        _table(f"{part.kind}: {part.use}. {part.summary}", ("option", "takes", "default", ""), rows)


def _table(title: str, headings: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(title=Text(title), title_justify="left", header_style="bold", row_styles=("", "dim"))
    for number, heading in enumerate(headings):
        table.add_column(heading, overflow="fold", no_wrap=number == 0)
    for row in rows:
        table.add_row(*map(Text, row))  # as they are: brackets in them are no markup
    Console().print(table)
