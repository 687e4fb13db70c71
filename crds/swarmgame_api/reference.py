"""The manifest's reference page, made from the models: `python -m swarmgame_api.reference [FILE]`."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

from pydantic.fields import FieldInfo

from swarmgame_api.base import Model
from swarmgame_api.manifest import API_VERSION, SwarmGame
from swarmgame_api.rules import objects
from swarmgame_api.status import REASONS, SwarmGameStatus
from swarmgame_api.type_descriptions import TypeInfo, default_cell, default_of, describe, field_type_info, type_info

MINIMAL = """\
apiVersion: swarmgame.dev/v1alpha1
kind: SwarmGame
metadata: {name: sums}
spec:
  game:
    maxRounds: 100
    data: {use: reasoning-gym, with: {environments: [{name: chain_sum}], questionsPerRound: 8}}
    rewards: {use: reasoning-gym}
    trainer: {use: grpo}
  model: {uri: "builtin://tiny"}
"""

_INTRODUCTION = f"""\
# The manifest

`{API_VERSION}`, kind `SwarmGame`. One file for `swarmgame run`, `swarmgame join` and `kubectl apply`.
This page is made from the models in `crds/swarmgame_api` by `python -m swarmgame_api.reference`.

The smallest manifest:
```yaml
{MINIMAL}```
`swarmgame validate game.yaml` shows it with its defaults. Unknown keys and wrong types are errors; `null` means absent.
The block under `with` belongs to the component that `use` names: [components](components.md).
The command line can set a value: `--set game.maxRounds=5`, `--set game.data.with.environments[0].name=gcd`,
`--set 'metadata.labels["kueue.x-k8s.io/queue-name"]=research'`.
"""


def reference() -> str:
    """Return the page as Markdown."""
    conditions = "\n".join(f"| {kind} | {', '.join(reasons)} |" for kind, reasons in REASONS.items())
    pages = [
        _INTRODUCTION,
        *_sections(SwarmGame, ""),
        "# Status\n\nWritten by the operator.\n",
        *_sections(SwarmGameStatus, "status"),
        f"## Conditions and their reasons\n\n| condition | reasons |\n|---|---|\n{conditions}\n",
    ]
    return "\n".join(pages)


def _sections(top: type[Model], path: str) -> Iterator[str]:
    places: dict[type[Model], list[str]] = {}
    for place, model in objects(top, path):
        places.setdefault(model, []).append(place)
    for model, where in places.items():
        yield _section(model, where)


def _section(model: type[Model], places: list[str]) -> str:
    where = ", ".join(f"`{place}`" for place in places if place) or "The manifest"
    lines = [f"## {model.__name__}", "", f"{where}. {_one_line(model.__doc__ or '')}", ""]
    lines += ["| field | takes | default | |", "|---|---|---|---|"]
    lines += [_row(field.alias or name, field) for name, field in model.model_fields.items()]
    rules = [f"{f'`{rule.field}`: ' if rule.field else ''}{rule.expected}" for rule in model.rules]
    rules += [f"{f'`{change.field}`: ' if change.field else ''}{change.expected}" for change in model.transitions]
    if rules:
        lines += ["", "Rules:", *(f"- {rule}" for rule in rules)]
    return "\n".join([*lines, ""])


def _row(name: str, field: FieldInfo) -> str:
    description = _one_line(field.description or "")
    cells = [f"`{name}`", _takes(field_type_info(field)), default_cell(default_of(field)), description]
    return f"| {' | '.join(map(_cell, cells))} |"


def _takes(info: TypeInfo) -> str:
    if info.model is not None:
        return f"[{info.model.__name__}](#{info.model.__name__.lower()})"
    if info.kind is tuple and (inner := type_info(info.arguments[0])).model is not None:
        return f"{describe(info).split(', each ')[0]}, each {_takes(inner)}"
    return describe(info)


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def main(arguments: list[str]) -> int:
    """Write the page to a file, by default docs/reference/manifest.md below the current folder."""
    target = Path(arguments[0] if arguments else "docs/reference/manifest.md")
    if not target.parent.is_dir():
        print(f"{target.parent} is not a folder; run this from the root of the repository", file=sys.stderr)
        return 64
    target.write_text(reference(), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
