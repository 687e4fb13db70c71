"""What is made in charts/: the definition's template, the charts' READMEs, and the descriptions in the values' schema.

`python charts/generate.py` writes them; `--check` writes nothing and fails when one is not current. Sources:
`crds/swarmgame.yaml`, the comments of each values.yaml, and the chapters of text in README.head.md. The schema's types
and bounds are written by hand; only its descriptions come from here. Invariant: every value has a comment, and one
sentence is written once.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import yaml

CHARTS = Path(__file__).resolve().parent
DEFINITION = CHARTS.parent / "crds" / "swarmgame.yaml"


class NotCurrent(Exception):
    """The sources do not allow what is asked, or a file is not what they make."""


@dataclass(frozen=True)
class Value:
    """One value of a chart.

    Args:
        path: its keys.
        comment: the sentence above it.
        default: as values.yaml has it.
    """

    path: tuple[str, ...]
    comment: str
    default: object


def values_of(text: str) -> tuple[Value, ...]:
    """The values of a values.yaml, in its order: every key with a comment above it."""
    return tuple(_values(yaml.safe_load(text), _comments(text), ()))


def _values(node: dict[str, object], comments: dict[tuple[str, ...], str], above: tuple[str, ...]) -> Iterator[Value]:
    for key, default in node.items():
        path = (*above, key)
        if path in comments:
            yield Value(path, comments[path], default)
        elif isinstance(default, dict) and default:
            yield from _values(default, comments, path)
        else:
            raise NotCurrent(f"values.yaml: {'.'.join(path)} has no comment; write above it what it does")


def _comments(text: str) -> dict[tuple[str, ...], str]:
    """The comment above each key. Values below a key that has one are part of its default."""
    comments: dict[tuple[str, ...], str] = {}
    open_keys: list[tuple[int, str]] = []
    pending: list[str] = []
    for line in text.splitlines():
        stripped = line.strip()
        if stripped.startswith("#"):
            pending.append(stripped.removeprefix("#").strip())
            continue
        key, colon, _ = stripped.partition(":")
        if colon and not stripped.startswith("-"):
            indent = len(line) - len(line.lstrip())
            open_keys = [(depth, name) for depth, name in open_keys if depth < indent]
            open_keys.append((indent, key))
            if pending:
                comments[tuple(name for _, name in open_keys)] = " ".join(pending)
        pending = []
    return comments


def readme(chart: Path) -> str:
    """The chart's README: its head, and a table of its values."""
    rows = ["## Values", "", "| value | default | |", "|---|---|---|"]
    for value in values_of((chart / "values.yaml").read_text()):
        default = json.dumps(value.default, ensure_ascii=False)
        rows.append(f"| `{'.'.join(value.path)}` | `{default}` | {value.comment.replace('|', chr(92) + '|')} |")
    return (chart / "README.head.md").read_text().rstrip() + "\n\n" + "\n".join(rows) + "\n"


def schema(chart: Path) -> str:
    """The chart's schema with its values' comments as descriptions."""
    document = json.loads((chart / "values.schema.json").read_text())
    for value in values_of((chart / "values.yaml").read_text()):
        node = document
        for key in value.path:
            if key not in node.get("properties", {}):
                raise NotCurrent(
                    f"{chart.name}/values.schema.json: there is no {'.'.join(value.path)}; say what it may be"
                )
            node = node["properties"][key]
        described = {
            "description": value.comment,
            **{key: content for key, content in node.items() if key != "description"},
        }
        node.clear()
        node.update(described)
    return json.dumps(document, indent=2, ensure_ascii=False) + "\n"


def definition_template(definition: str) -> str:
    """The custom resource definition as a template: as it is, but for labels and annotations of its own."""
    document = yaml.safe_load(definition)
    metadata = document["metadata"]
    unknown = set(metadata) - {"name", "annotations", "labels"}
    start = definition.find("\nspec:")
    if document["kind"] != "CustomResourceDefinition" or unknown or start < 0:
        raise NotCurrent(f"{DEFINITION}: not a definition with name, labels and annotations alone: {sorted(unknown)}")
    lines = [
        "{{/* Made by charts/generate.py from crds/swarmgame.yaml. */}}",
        f"apiVersion: {document['apiVersion']}",
        "kind: CustomResourceDefinition",
        "metadata:",
        f"  name: {metadata['name']}",
        "  labels:",
        *(f"    {key}: {json.dumps(text)}" for key, text in metadata.get("labels", {}).items()),
        "    app.kubernetes.io/name: {{ .Chart.Name }}",
        "    app.kubernetes.io/instance: {{ .Release.Name }}",
        "    app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}",
        "    app.kubernetes.io/part-of: swarmgame",
        "    app.kubernetes.io/managed-by: {{ .Release.Service }}",
        '    helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" | trunc 63 }}',
        "    {{- with .Values.labels }}",
        "    {{- toYaml . | nindent 4 }}",
        "    {{- end }}",
    ]
    annotations = [f"    {key}: {json.dumps(text)}" for key, text in metadata.get("annotations", {}).items()]
    lines += [
        *([] if annotations else ["  {{- if or .Values.keep .Values.annotations }}"]),
        "  annotations:",
        *annotations,
        "    {{- if .Values.keep }}",
        "    helm.sh/resource-policy: keep",
        "    {{- end }}",
        "    {{- with .Values.annotations }}",
        "    {{- toYaml . | nindent 4 }}",
        "    {{- end }}",
        *([] if annotations else ["  {{- end }}"]),
    ]
    body = definition[start + 1 :].replace("{{", '{{ "{{" }}')
    return "\n".join(lines) + "\n" + body.rstrip() + "\n"


def outputs() -> dict[Path, str]:
    """Every made file with what it should hold."""
    made = {CHARTS / "swarmgame-crds" / "templates" / "swarmgame.yaml": definition_template(DEFINITION.read_text())}
    for name in ("swarmgame", "swarmgame-crds"):
        chart = CHARTS / name
        made[chart / "README.md"] = readme(chart)
        made[chart / "values.schema.json"] = schema(chart)
    return made


def main(arguments: list[str]) -> int:
    """Writes, or with --check compares."""
    if arguments not in ([], ["--check"]):
        print("usage: generate.py [--check]", file=sys.stderr)
        return 64
    try:
        made = outputs()
        stale = [path for path, text in made.items() if not path.exists() or path.read_text() != text]
        if arguments and stale:
            raise NotCurrent(
                f"not current: {', '.join(str(path.relative_to(CHARTS.parent)) for path in stale)}; run make generate"
            )
    except (NotCurrent, FileNotFoundError) as problem:
        print(problem, file=sys.stderr)
        return 1
    for path in stale:
        path.write_text(made[path])
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
