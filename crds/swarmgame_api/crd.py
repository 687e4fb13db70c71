"""The CustomResourceDefinition, from the models: `python -m swarmgame_api.crd [FILE]` writes crds/swarmgame.yaml.

Names, columns and subresources are defined here; everything about fields comes from `schema`. Invariant: the file is
never edited by hand, and it stays far below the size at which `kubectl apply` cannot keep a copy of it in an
annotation.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from swarmgame_api.manifest import API_VERSION, KIND, Metadata, SwarmGame, SwarmGameSpec
from swarmgame_api.schema import Schema, object_schema, one_line, validation
from swarmgame_api.status import SwarmGameStatus
from swarmgame_api.yaml_io import dump_document

GROUP, VERSION = API_VERSION.split("/")
PLURAL = "swarmgames"
SHORT_NAME = "sg"
CATEGORY = "all"
QUEUE_LABEL = "kueue.x-k8s.io/queue-name"

_HEADER = "# Made from the models in crds/swarmgame_api by `python -m swarmgame_api.crd`. Do not edit.\n"

Column = tuple[str, str, str, str]

_COLUMNS: tuple[Column, ...] = (
    ("Ready", "string", '.status.conditions[?(@.type=="Ready")].status', "Whether enough peers take part."),
    ("Reason", "string", '.status.conditions[?(@.type=="Ready")].reason', "Reason of the Ready condition."),
    ("Peers", "integer", ".status.peers.ready", "Peers in the swarm."),
    ("Desired", "integer", ".spec.peers.replicas", "Desired peers."),
    ("Round", "integer", ".status.progress.round", "Completed rounds."),
    ("Rounds", "integer", ".spec.game.maxRounds", "Rounds of the game."),
    ("Reward", "string", '.status.progress.metrics[?(@.name=="reward")].value', "Mean reward of the last round."),
    ("Age", "date", ".metadata.creationTimestamp", "Time since creation."),
)
_WIDE_COLUMNS: tuple[Column, ...] = (
    ("Registered", "integer", ".status.peers.registered", "Peers registered on chain."),
    ("Queue", "string", ".metadata.labels." + QUEUE_LABEL.replace(".", r"\."), "The queue that admits it."),
    ("Chain-Round", "integer", ".status.coordination.round", "The round on chain."),
    ("Model", "string", ".spec.model.uri", "The policy's initial weights."),
    ("Suspended", "string", '.status.conditions[?(@.type=="Suspended")].status', "Whether the game is suspended."),
)


def definition() -> dict[str, Any]:
    """Return the CustomResourceDefinition as plain data."""
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{PLURAL}.{GROUP}"},
        "spec": {
            "group": GROUP,
            "scope": "Namespaced",
            "names": {
                "kind": KIND,
                "listKind": f"{KIND}List",
                "plural": PLURAL,
                "singular": KIND.lower(),
                "shortNames": [SHORT_NAME],
                "categories": [CATEGORY],
            },
            "versions": [
                {
                    "name": VERSION,
                    "served": True,
                    "storage": True,
                    "subresources": {
                        "status": {},
                        "scale": {
                            "specReplicasPath": ".spec.peers.replicas",
                            "statusReplicasPath": ".status.replicas",
                            "labelSelectorPath": ".status.selector",
                        },
                    },
                    "additionalPrinterColumns": [_column(column) for column in _COLUMNS]
                    + [{**_column(column), "priority": 1} for column in _WIDE_COLUMNS],
                    "schema": {"openAPIV3Schema": _root()},
                }
            ],
        },
    }


def document() -> str:
    """Return the definition as the text of its file."""
    return _HEADER + dump_document(definition())


def _root() -> Schema:
    """Return the schema of the object itself. The API server owns its metadata, so rules about the name are here."""
    return {
        "type": "object",
        "description": one_line(SwarmGame.__doc__ or ""),
        "properties": {
            "apiVersion": {"type": "string", "description": "The version of this schema."},
            "kind": {"type": "string", "description": f"{KIND}."},
            "metadata": {"type": "object", "properties": {"name": {"type": "string", "maxLength": 253}}},
            "spec": object_schema(SwarmGameSpec),
            "status": _without_defaults(object_schema(SwarmGameStatus)),
        },
        "required": ["spec"],
        "x-kubernetes-validations": [
            {**validation(rule), "fieldPath": f".metadata.{rule.field}"} for rule in Metadata.rules
        ],
    }


def _without_defaults(schema: Schema) -> Schema:
    """Return the schema without defaults: a status holds only what its controller wrote."""
    kept = {key: value for key, value in schema.items() if key != "default"}
    if "properties" in kept:
        kept["properties"] = {name: _without_defaults(child) for name, child in kept["properties"].items()}
    if "items" in kept:
        kept["items"] = _without_defaults(kept["items"])
    return kept


def _column(column: Column) -> Schema:
    name, kind, path, description = column
    return {"name": name, "type": kind, "jsonPath": path, "description": description}


def main(arguments: list[str]) -> int:
    """Write the definition to a file, by default crds/swarmgame.yaml below the current folder."""
    target = Path(arguments[0] if arguments else "crds/swarmgame.yaml")
    if not target.parent.is_dir():
        print(f"{target.parent} is not a folder; run this from the root of the repository", file=sys.stderr)
        return 64
    target.write_text(document(), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
