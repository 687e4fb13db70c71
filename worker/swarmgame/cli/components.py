"""`swarmgame components`: the values of `use` in a manifest, and the options of each under `with`.

Tables on a terminal, JSON lines on a pipe. Nothing is created or started.
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

app = typer.Typer(
    no_args_is_help=True, help="Data, rewards, trainers, environments, tools and trackers that a game may use."
)


@app.command("list")
def list_components(
    markdown: Annotated[bool, typer.Option("--markdown", help="The page docs/reference/components.md.")] = False,
) -> None:
    """List the installed components: built in, or registered by your own package under swarmgame.data,
    swarmgame.rewards, swarmgame.trainers, swarmgame.turn_environments, swarmgame.tools, swarmgame.roles or
    swarmgame.trackers.

    [bold]Examples[/bold]

      swarmgame components list

      swarmgame components list | jq .use
    """
    from swarmgame.cli.component_reference import components_page, installed_components

    components = installed_components()
    if markdown:
        typer.echo(components_page(components), nl=False)
    elif not sys.stdout.isatty():
        for each in components:
            typer.echo(json.dumps({"kind": each.kind, "use": each.use, "summary": each.summary}))
    else:
        rows = ((each.kind, each.use, each.summary) for each in components)
        _table(f"{len(components)} components", ("kind", "use", "what it is"), rows)


@app.command()
def show(
    name: Annotated[str, typer.Argument(metavar="NAME", help="The value of `use`.", show_default=False)],
) -> None:
    """Show the options of a component: the keys of `with`. A name that several kinds have shows each.

    [bold]Examples[/bold]

      swarmgame components show grpo

      swarmgame components show reasoning-gym
    """
    from swarmgame.cli.component_reference import component_names, installed_components

    components = installed_components(name)
    if not components:
        raise InvalidManifest(
            "NAME",
            name,
            f"an installed component{did_you_mean(name, component_names())}; "
            "`swarmgame components list` shows them all",
        )
    for each in components:
        if not sys.stdout.isatty():
            typer.echo(json.dumps(asdict(each)))
            continue
        rows = ((option.path, option.takes, option.default, option.meaning) for option in each.options)
        _table(f"{each.kind}: {each.use}. {each.summary}", ("option", "takes", "default", ""), rows)


def _table(title: str, headings: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(title=Text(title), title_justify="left", header_style="bold", row_styles=("", "dim"))
    for number, heading in enumerate(headings):
        table.add_column(heading, overflow="fold", no_wrap=number == 0)
    for row in rows:
        table.add_row(*map(Text, row))  # Text: brackets in them are not markup
    Console().print(table)
