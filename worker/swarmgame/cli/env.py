"""`swarmgame env`: the environments that questions come from: a list, an example of each, and a check.

Tables on a terminal, JSON lines on a pipe. Nothing is written and nothing is downloaded.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from swarmgame.cli.env_game import is_game, pinned_and_repeatable
from swarmgame.cli.options import Overrides
from swarmgame.errors import BadData, BadGame, BadUsage, InvalidManifest
from swarmgame_api.validation_messages import did_you_mean

if TYPE_CHECKING:
    from swarmgame.sandbox.client import Sandbox

app = typer.Typer(no_args_is_help=True, help="The environments from which a game takes its questions.")

_MODULE = "swarmgame.data.environments"
_CATALOG = "swarmgame.data.environment_catalog"
_EXAMPLE_SEED = 2026
_LONGEST_EXAMPLE = 2000


@app.command("list")
def list_environments(
    markdown: Annotated[bool, typer.Option("--markdown", help="The page docs/reference/environments.md.")] = False,
) -> None:
    """List the environments: reasoning-gym's, composites of them, and those installed under `swarmgame.environments`.

    [bold]Examples[/bold]

      swarmgame env list

      swarmgame env list | jq -r .name
    """
    with _sandbox() as sandbox:
        rows = sandbox.call_trusted(f"{_CATALOG}:catalog")
        if markdown:
            typer.echo(
                _page(rows, {row["name"]: sandbox.call_trusted(f"{_CATALOG}:fields", row["name"]) for row in rows}),
                nl=False,
            )
            return
    columns = {
        "name": "name",
        "category": "category",
        "curriculum": "curriculum",
        "evaluates": "sandboxed eval",
        "summary": "question",
    }
    _show(f"{len(rows)} environments", columns, rows)


@app.command()
def show(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Name of an environment.", show_default=False)],
) -> None:
    """Show one environment: its configuration, and an example of a question with its answer.

    [bold]Examples[/bold]

      swarmgame env show chain_sum
    """
    with _sandbox() as sandbox:
        row = _known(sandbox, [name])[0]
        fields = sandbox.call_trusted(f"{_CATALOG}:fields", name)
        config = {"datasets": [{"name": "chain_sum"}]} if any(field["required"] for field in fields) else {}
        outcome = sandbox.call_untrusted(
            f"{_MODULE}:make", [[name, config, _EXAMPLE_SEED]], deadline=10.0, together=True
        )[0]
    example = outcome.value or {"question": f"(none: {outcome.message})", "answer": ""}
    if not sys.stdout.isatty():
        typer.echo(json.dumps({**row, "fields": fields, "example": example}))
        return
    _show(f"{name}: {row['summary']}", {"name": "field", "type": "type", "default": "default"}, fields)
    typer.echo(
        f"\n{example['question'][:_LONGEST_EXAMPLE]}\n\n"
        f"→ {example['answer'][:_LONGEST_EXAMPLE] or '(any solution counts; none is stored)'}"
    )


@app.command()
def check(
    names: Annotated[
        list[str],
        typer.Argument(
            metavar="GAME|NAME…|all", help="A manifest, or names of environments, or `all`.", show_default=False
        ),
    ],
    set_: Overrides = None,
) -> None:
    """Check a game: what it rests on, with fingerprints that peers compare, and whether its data is deterministic.

    Or check environments by name: whether they are deterministic, accept their own answer, reject garbage, and how
    fast they are.

    Exit codes: 0 fit, 65 an environment is unfit, 78 the game cannot be used, or makes other questions the second time.

    [bold]Examples[/bold]

      swarmgame env check game.yaml

      swarmgame env check chain_sum spell_backward

      swarmgame env check all
    """
    if is_game(names[0]):
        if len(names) > 1:
            raise BadUsage(f"{names[0]} is a game, and is checked by itself: leave out {' '.join(names[1:])}")
        rows = pinned_and_repeatable(Path(names[0]), set_ or ())
        _show(f"{names[0]} rests on", {"source": "source", "fingerprint": "fingerprint", "of": "of"}, rows)
        return
    from swarmgame.data.checks import check as check_environment

    found = []
    with _sandbox() as sandbox:
        for row in _known(sandbox, names):
            result = check_environment(
                sandbox, row["name"], {"datasets": [{"name": "chain_sum"}]} if row["name"] == "composite" else {}
            )
            found.append(result)
            if not sys.stdout.isatty():
                typer.echo(json.dumps(result.as_json()))
        protections = ", ".join(sandbox.protections)
    if sys.stdout.isatty():
        columns = {
            "name": "name",
            "fingerprint": "fingerprint",
            "own_answer": "own answer",
            "garbage": "garbage",
            "exceptions": "raises",
            "making_ms": "ms to make",
            "scoring_ms": "ms to score",
            "problems": "problems",
        }
        _show(f"sandbox: {protections}", columns, [result.as_json() for result in found])
    if changing := [result for result in found if not result.deterministic]:
        raise BadGame(f"{changing[0].name}: {changing[0].problems[0]}")
    unfit = [result.name for result in found if result.problems]
    if unfit:
        raise BadData(f"{len(unfit)} of {len(found)} environments are unfit: {', '.join(unfit)}")


@contextmanager
def _sandbox() -> Iterator[Sandbox]:
    from swarmgame.sandbox.client import Sandbox

    sandbox = Sandbox()
    try:
        yield sandbox
    finally:
        sandbox.close()


def _known(sandbox: Sandbox, names: Sequence[str]) -> list[dict[str, Any]]:
    catalog = {row["name"]: row for row in sandbox.call_trusted(f"{_CATALOG}:catalog")}
    if list(names) == ["all"]:
        return list(catalog.values())
    for name in names:
        if name not in catalog:
            raise InvalidManifest(
                "NAME", name, f"an environment{did_you_mean(name, catalog)}; `swarmgame env list` shows them all"
            )
    return [catalog[name] for name in names]


def _show(title: str, columns: Mapping[str, str], rows: Sequence[Mapping[str, Any]]) -> None:
    if not sys.stdout.isatty():
        for row in rows:
            typer.echo(json.dumps(row))
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title, title_justify="left", header_style="bold", row_styles=("", "dim"))
    for heading in columns.values():
        table.add_column(heading, no_wrap=heading == "name")
    for row in rows:
        table.add_row(*(_cell(row[key]) for key in columns))
    Console().print(table)


def _cell(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else ""
    if isinstance(value, list | tuple):
        return "; ".join(map(str, value)) if all(isinstance(item, str) for item in value) else json.dumps(value)
    return "—" if value is None else str(value)


def _page(rows: Sequence[Mapping[str, Any]], fields: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    lines = [
        "# Environments",
        "",
        "The environments of `use: reasoning-gym`. This page is made by "
        "`swarmgame env list --markdown > docs/reference/environments.md`; `swarmgame env show NAME` adds an example, "
        "`swarmgame env check NAME` checks one. *Curriculum*: its questions can become harder as answers get better. "
        "*Eval*: its scorer evaluates the answer's text, which is why answers are scored in a sandbox. The "
        "configuration has the environment's own names; the game sets seed and size. boxnet, graph_color, "
        "propositional_logic, rubiks_cube and rush_hour store no answer: any solution counts, and they give no "
        'demonstrations. game_of_life_halting takes any text for "no".',
        "",
        "| environment | category | curriculum | eval | question | configuration |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        config = "<br>".join(
            f"`{field['name']}`: {field['type']} = `{_short(field['default'])}`" for field in fields[row["name"]]
        )
        marks = ["yes" if row[key] else "" for key in ("curriculum", "evaluates")]
        cells = [f"`{row['name']}`", row["category"], *marks, row["summary"], config]
        lines.append("| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |")
    return "\n".join(lines) + "\n"


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:57]}..."
