"""Manifests from files, texts and plain data, and back.

Invariant: every error in a manifest ends in InvalidManifest, with all problems at once, each with path, value and
expectation; nothing else is raised.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

from pydantic import BaseModel, JsonValue, ValidationError

from swarmgame_api.errors import InvalidManifest, Problem, Unquoted, format_path
from swarmgame_api.manifest import API_VERSION, KIND, SwarmGame
from swarmgame_api.overrides import TOP, apply_overrides, parse_override
from swarmgame_api.type_descriptions import TypeInfo, field_type_info, type_info
from swarmgame_api.validation_messages import explain
from swarmgame_api.yaml_io import MAX_BYTES, dump_document, load_documents, to_json

SERVER_METADATA = frozenset(
    {
        "creationTimestamp",
        "deletionGracePeriodSeconds",
        "deletionTimestamp",
        "finalizers",
        "generateName",
        "generation",
        "managedFields",
        "ownerReferences",
        "resourceVersion",
        "selfLink",
        "uid",
    }
)
"""Metadata of an object in a cluster that is not part of the game; dropped before validation."""


def load_manifest(path: str | Path, overrides: Sequence[str] = ()) -> SwarmGame:
    """Read, override and validate a manifest.

    Args:
        path: a YAML or JSON file with one SwarmGame.
        overrides: `a.b=c`, applied in order before validation; see `overrides`.

    Raises:
        InvalidManifest: with every problem, and the file's name as its source.
    """
    source = str(path)
    changes = [parse_override(text) for text in overrides]
    try:
        document = apply_overrides(_single_game(load_documents(_read(Path(path)))), changes)
        return parse_manifest(document)
    except InvalidManifest as error:
        changed = [format_path(steps) for steps, _ in changes]
        raise InvalidManifest(
            source=source, problems=tuple(_mark_override(problem, changed) for problem in error.problems)
        ) from error


def loads_manifest(text: str, overrides: Sequence[str] = ()) -> SwarmGame:
    """Return the manifest in a text; see `load_manifest`."""
    changes = [parse_override(override) for override in overrides]
    return parse_manifest(apply_overrides(_single_game(load_documents(text)), changes))


def parse_manifest(data: object) -> SwarmGame:
    """Validate plain data, such as the body of an object from a cluster, without its status and the server's metadata.

    Raises:
        InvalidManifest: with every problem.
    """
    tree = to_json(data)
    if not isinstance(tree, dict):
        raise InvalidManifest("", tree, f"a mapping with the fields {', '.join(TOP)}")
    if tree.get("kind", KIND) != KIND:
        raise InvalidManifest("kind", tree["kind"], KIND)
    tree.pop("status", None)
    if isinstance(metadata := tree.get("metadata"), dict):
        tree["metadata"] = {key: value for key, value in metadata.items() if key not in SERVER_METADATA}
    try:
        # JSON, because strict validation takes lists for tuples only there; and only the manifest's names.
        return SwarmGame.model_validate_json(
            json.dumps(_without_nulls(tree, TypeInfo(SwarmGame, (), ()))), by_alias=True, by_name=False
        )
    except ValidationError as error:
        raise InvalidManifest(problems=explain(SwarmGame, error.errors(include_url=False))) from error


def dump_manifest(game: SwarmGame) -> str:
    """Return the manifest as YAML with its defaults; `loads_manifest` of it gives an equal one."""
    return dump_document(manifest_data(game))


def manifest_data(game: SwarmGame) -> dict[str, Any]:
    """Return the manifest as plain data with the manifest's names, without absent fields."""
    return game.model_dump(mode="json", by_alias=True, exclude_none=True)


def _read(path: Path) -> str:
    try:
        if path.is_dir():
            inside = path / "game.yaml"
            raise InvalidManifest(
                "", Unquoted("a folder"), f"a file, perhaps {inside}" if inside.is_file() else "a file"
            )
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
    except FileNotFoundError as error:
        raise InvalidManifest("", None, "a file with a SwarmGame at this path") from error
    except (OSError, ValueError) as error:  # ValueError: a path with a null byte
        reason = getattr(error, "strerror", None) or str(error)
        raise InvalidManifest("", Unquoted("not readable"), f"a file that can be read; {reason.lower()}") from error
    if len(content) > MAX_BYTES:
        raise InvalidManifest("", Unquoted("too large"), f"a file of at most {MAX_BYTES:,} bytes")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InvalidManifest("", Unquoted("not a text"), f"UTF-8; byte {error.start} is not") from error


def _single_game(documents: Sequence[JsonValue]) -> JsonValue:
    if not documents:
        raise InvalidManifest(
            "", Unquoted("empty"), f"a {KIND}: apiVersion: {API_VERSION}, kind: {KIND}, metadata, spec"
        )
    if len(documents) > 1:
        kinds = [str(document.get("kind")) if isinstance(document, dict) else "?" for document in documents]
        hint = "keep other objects in files of their own" if kinds.count(KIND) == 1 else "one file a game"
        raise InvalidManifest(
            "", Unquoted(f"{len(documents)} documents ({', '.join(kinds)[:100]})"), f"exactly one {KIND}; {hint}"
        )
    return documents[0]


@cache
def _field_types(model: type[BaseModel]) -> Mapping[str, TypeInfo]:
    """Return the fields of a model by the manifest's names."""
    return {field.alias or name: field_type_info(field) for name, field in model.model_fields.items()}


def _without_nulls(tree: JsonValue, info: TypeInfo) -> JsonValue:
    """Return the tree without nulls among an object's fields, as the API server does, so that defaults apply.
    Free-form blocks are unchanged."""
    if isinstance(tree, dict) and info.model is not None:
        fields = _field_types(info.model)
        return {
            key: _without_nulls(value, fields[key]) if key in fields else value
            for key, value in tree.items()
            if value is not None
        }
    if isinstance(tree, list) and info.kind is tuple:
        return [_without_nulls(value, type_info(info.arguments[0])) for value in tree]
    return tree


def _mark_override(problem: Problem, changed: Sequence[str]) -> Problem:
    for path in changed:
        if problem.path == path or problem.path.startswith((f"{path}.", f"{path}[")):
            return replace(problem, expected=f"{problem.expected} (from --set)")
    return problem
